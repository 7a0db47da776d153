"""Check a checkpoint's config before the model is built: no code from elsewhere, and no sizes beyond any
real model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Far above any published model (BEiT-large: 24 layers, width 1,024; ViT-22B: 48 and 6,144).
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "depth", "depths", "num_layers"), 1_000),
    **dict.fromkeys(
        ("hidden_size", "hidden_sizes", "embed_dim", "intermediate_size", "num_attention_heads", "num_heads"),
        100_000,
    ),
    **dict.fromkeys(("image_size", "max_position_embeddings", "num_channels"), 100_000),
    **dict.fromkeys(("vocab_size", "num_labels"), 2_000_000),
}
# Part of transformers
OWN_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def config_problems(values: dict[str, Any]) -> list[str]:
    """Return the problems of a config.json, one line per key.

    A problem is a size beyond `LIMITS`, or attention code that would be downloaded.
    """
    problems = []
    for key, value in _items(values):
        numbers = [
            number for number in (value if isinstance(value, list) else [value]) if type(number) is int
        ]
        if key in LIMITS and (large := [number for number in numbers if number > LIMITS[key]]):
            problems.append(f"{key}: {large[0]:,}, allowed are at most {LIMITS[key]:,}")
        if key in ATTENTION_KEYS and isinstance(value, str) and value not in OWN_ATTENTION:
            problems.append(f"{key}: {value!r} would download code; allowed: {', '.join(OWN_ATTENTION)}")
    return problems


def _items(values: dict[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, also of nested configs."""
    for key, value in values.items():
        yield key, value
        if isinstance(value, dict) and depth < 3:
            yield from _items(value, depth + 1)
