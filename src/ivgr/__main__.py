"""The command `ivgr`, also as `python -m ivgr`."""

import os

# Threads that spin while they wait for one another stop a run as soon as another process keeps a core
# busy. OpenMP reads this when torch is loaded; who has set it, has.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ivgr.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
