"""ECA as published, fused: the tutorial's block with another default."""

from __future__ import annotations

from .. import blocks
from ..reference import published


class ECABlock(blocks.ECABlock, published.ECABlock):
    __doc__ = published.ECABlock.__doc__
