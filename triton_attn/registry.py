"""From a name to a block."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import blocks, published
from .reference import registry as plain
from .reference.channel_gate import check_choice
from .reference.registry import look_up

BLOCKS: dict[str, type[nn.Module]] = {name: getattr(blocks, kind.__name__) for name, kind in plain.BLOCKS.items()}
PUBLISHED: dict[str, type[nn.Module]] = {
    name: getattr(published, kind.__name__) for name, kind in plain.PUBLISHED.items()
}
"""The blocks as papers and other libraries have them; those above are the tutorial's."""

ALL = dict(sorted((BLOCKS | PUBLISHED).items()))
FAMILIES = {"tutorial": BLOCKS, "published": PUBLISHED, "all": ALL}


def list_attention(family: str = "tutorial") -> list[str]:
    """The names of the blocks, sorted.

    Args:
        family: ``"tutorial"``, the blocks that go by a name alone; ``"published"``, those of papers and other libraries
            (``"published.cbam"``); or ``"all"``.

    Raises:
        ValueError: an unknown family.
    """
    check_choice("family", family, tuple(FAMILIES))
    return sorted(FAMILIES[family])


def create_attention(name: str, channels: int, **kwargs: Any) -> nn.Module:
    """Build a block by name.

    Args:
        name: one of ``list_attention("all")``.
        channels: the channels of the map it will see.
        **kwargs: the block's own arguments (``reduction``, ``kernel_size``, ``identity``, ``device``, ``dtype`` …).

    Raises:
        ValueError: an unknown name (the error says the nearest known one), or arguments that the block refuses.
    """
    look_up("attention", name, ALL)
    return ALL[name](channels, **kwargs)
