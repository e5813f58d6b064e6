"""The two layouts that the kernels serve as they come: contiguous, and channels_last."""

from __future__ import annotations

import torch
from torch import Tensor

# A map is served where it can be seen as (N, outer, inner) with inner contiguous, and outer at any one stride: so
# slices of a batch, and of the channels of a contiguous map, need no copy either.


def is_rows_of_positions(x: Tensor) -> bool:
    """Contiguous within each channel: outer = channels, inner = positions."""
    _, _, height, width = x.shape
    return (width == 1 or x.stride(3) == 1) and (height == 1 or x.stride(2) == width)


def is_rows_of_channels(x: Tensor) -> bool:
    """channels_last: outer = positions, inner = channels."""
    _, channels, height, width = x.shape
    step = x.stride(3)
    return (
        (channels == 1 or x.stride(1) == 1)
        and (width == 1 or step >= channels)
        and (height == 1 or x.stride(2) == width * step)
    )
