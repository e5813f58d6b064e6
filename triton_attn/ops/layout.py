"""The two layouts that the kernels serve as they come: contiguous, and channels_last.

The kernels see a map as (N, outer, inner) with inner contiguous and any one step between rows, so slices of a batch,
and of the channels of a contiguous map, need no copy either. Every other stride is copied once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool | None:
    """True where rows are positions (inner = channels), False where rows are channels, None for other strides."""
    _, channels, height, width = x.shape
    if height * width == 1:
        return x.stride(1) == 1
    if (width == 1 or x.stride(3) == 1) and (height == 1 or x.stride(2) == width):
        return False
    step = row_stride(x, channels_last=True)
    if (channels == 1 or x.stride(1) == 1) and step >= channels and (height == 1 or x.stride(2) == width * step):
        return True
    return None


def row_stride(x: Tensor, channels_last: bool) -> int:
    """The step from one row of the map to the next."""
    if not channels_last:
        return x.stride(1)
    return x.stride(3) if x.shape[3] > 1 else x.stride(2)


def served(x: Tensor, channels_last: bool | None = None) -> tuple[Tensor, bool]:
    """``x`` in a layout the kernels serve, copied only where it has another, and whether that is channels_last.

    Without ``channels_last`` it is the map's own layout, and contiguous for strides of neither.
    """
    own = is_channels_last(x)
    if own is None or (channels_last is not None and own != channels_last):
        wanted = bool(channels_last)
        return x.contiguous(memory_format=memory_format(wanted)), wanted
    return x, own


def served_both(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """:func:`served` of a map, and of a gradient in its layout."""
    x, channels_last = served(x)
    return served(grad, channels_last)[0], x, channels_last


def empty_map(x: Tensor, channels_last: bool) -> Tensor:
    """An uninitialised map like ``x``, which is in the given layout, densely."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x)  # the very strides of x, those of axes of size 1 too
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(channels_last))


def memory_format(channels_last: bool) -> torch.memory_format:
    """PyTorch's name of the layout."""
    return torch.channels_last if channels_last else torch.contiguous_format


def rows(x: Tensor, channels_last: bool) -> tuple[int, int]:
    """The sizes (outer, inner) of the map as the kernels see it."""
    positions = x.shape[2] * x.shape[3]
    return (positions, x.shape[1]) if channels_last else (x.shape[1], positions)


def in_layout(x: Tensor | None, channels_last: bool) -> Tensor | None:
    """:func:`served` of a tensor that there may be."""
    return None if x is None else served(x, channels_last)[0]
