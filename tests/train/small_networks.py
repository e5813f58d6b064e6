"""A ResNet-18 of one block a stage and a quarter of the width, so that a run of the tests takes no second.

What the whole ResNets are is tested elsewhere; the command line builds whatever stands under the name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triton_attn.files import new_file
from triton_attn.reference.resnet import ARCHITECTURES, BasicBlock
from triton_attn.train import plots

NARROWER = 4
WHOLE_CURVES = plots.draw_curves


class Share:
    """Times a width, a quarter of it: what the stages multiply widths by."""

    def __rmul__(self, width: int) -> int:
        return width // NARROWER


class NarrowBlock(BasicBlock):
    """A block of a quarter of the channels that are asked for."""

    expansion = Share()  # type: ignore[assignment]

    def _build(self, inplanes: int, planes: int, stride: int) -> None:
        super()._build(inplanes, planes // NARROWER, stride)


def draw_nothing(path: Path, history: list[dict[str, Any]]) -> None:
    """A picture of one pixel, written as the curves are: to draw these takes longer than to train."""
    assert history
    with new_file(path) as temporary:
        Image.new("RGB", (1, 1)).save(temporary)


def use_small(patch: pytest.MonkeyPatch) -> None:
    """Have a small network under ``resnet18``, and curves of one pixel."""
    patch.setitem(ARCHITECTURES, "resnet18", (NarrowBlock, (1, 1, 1, 1)))
    patch.setattr(plots, "draw_curves", draw_nothing)
