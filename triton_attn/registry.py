"""From a name to a block."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import blocks
from .reference.registry import look_up

BLOCKS: dict[str, type[nn.Module]] = {
    "cbam": blocks.CBAM,
    "coordinate": blocks.CoordinateAttention,
    "dual": blocks.DualAttentionBlock,
    "eca": blocks.ECABlock,
    "gate": blocks.AttentionGate,
    "nonlocal": blocks.NonLocalBlock,
    "pixel": blocks.AttentionModule,
    "se": blocks.SEBlock,
}


def list_attention() -> list[str]:
    """The names of the blocks, sorted."""
    return sorted(BLOCKS)


def create_attention(name: str, channels: int, **kwargs: Any) -> nn.Module:
    """Build a block by name.

    Args:
        name: one of :func:`list_attention`.
        channels: the channels of the map it will see.
        **kwargs: the block's own arguments (``reduction``, ``kernel_size``, ``device``, ``dtype`` …).

    Raises:
        ValueError: an unknown name (the error says the nearest known one), or arguments that the block refuses.
    """
    look_up("attention", name, BLOCKS)
    return BLOCKS[name](channels, **kwargs)
