"""The shipped tiny policy, an ordinary HF directory."""
