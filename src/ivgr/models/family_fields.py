"""Fields of the language model's HF configuration that the families name alike."""

from typing import Any

# Of `rope_parameters`. Transformers knows it of a family without being told, other engines do not.
INTERLEAVED = "mrope_interleaved"


def text_fields(
    hidden: int,
    feed: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    length: int,
    theta: float,
    section: tuple[int, int, int],
    interleaved: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Hidden and feed-forward size, layers, attention heads, key-value heads, words, longest
    text in tokens, base of the rotary frequencies and their split over time, rows and columns, which
    is interleaved or in blocks."""
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(section)}
    return {
        "hidden_size": hidden,
        "intermediate_size": feed,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope | ({INTERLEAVED: True} if interleaved else {}),
        **more,
    }
