"""What ops share that multiply by the library: in which dtype, and maps as the rows of a product."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import autocast


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of ``x`` are computed in: its own dtype, or autocast's."""
    return dict(autocast()).get(x.device.type, x.dtype)


def rows_of(x: Tensor) -> Tensor:
    """A channels_last map as ``(N·H·W, C)``: a view, unless a batch has gaps."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def sum_of(grad: Tensor, axes: tuple[int, ...], bias: Tensor) -> Tensor:
    """A bias' gradient: the sum over all positions."""
    dtype = torch.promote_types(grad.dtype, bias.dtype)
    return torch.sum(grad, axes, dtype=dtype, out=bias.new_empty(bias.shape, dtype=dtype)).to(bias.dtype)
