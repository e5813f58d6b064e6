"""The shortcut behind an op: added in it, or behind it where PyTorch's sum of both is of a wider dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import in_layout, served
from .library import Op


def in_one(x: Tensor, shortcut: Tensor | None) -> Tensor | None:
    """The shortcut, where the op adds it: not one of another dtype, which :func:`added` does."""
    return shortcut if shortcut is not None and shortcut.dtype == x.dtype else None


def added(y: Tensor, shortcut: Tensor | None, last: Tensor | None) -> Tensor:
    """y of an op that had ``last`` as its shortcut, with the shortcut that there is."""
    return y if shortcut is None or last is not None else torch.relu(y + shortcut)


def serve(op: Op, x: Tensor, weights: Sequence[Tensor | None], shortcut: Tensor | None, *constants: Any) -> Tensor:
    """y of an op that takes a map, weights, a shortcut and constants, all of them checked; maps of any layout."""
    x, channels_last = served(x)
    last = in_one(x, shortcut)
    return added(op(x, *weights, in_layout(last, channels_last), *constants), shortcut, last)
