"""The mask of a ReLU behind a shortcut, kept for the backward as bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tuning import rules
from .layout import is_channels_last, rows


def empty_bits(x: Tensor, channels_last: bool) -> Tensor:
    """Room for the mask of a map, eight elements of a row to a byte."""
    outer, inner = rows(x, channels_last)
    return torch.empty((x.shape[0], outer, rules.cdiv(inner, 8)), dtype=torch.uint8, device=x.device)


def mask(bits: Tensor, x: Tensor, *_: Any) -> Tensor:
    """The mask of a map like ``x``, whose bits these are, as booleans ``(N, C, H, W)``."""
    if is_channels_last(x):
        return mask_of_positions(bits, x)
    return unpacked(bits)[..., : x.shape[2] * x.shape[3]].reshape(x.shape)


def mask_of_positions(bits: Tensor, x: Tensor, *_: Any) -> Tensor:
    """The same of bits that are eight channels of a position to a byte, whatever the layout of ``x``."""
    batch, channels, height, width = x.shape
    return unpacked(bits)[..., :channels].reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def masked(grad: Tensor, bits: Tensor | None, x: Tensor) -> Tensor:
    """y's gradient behind the mask of a map like ``x``, where there is one."""
    return grad if bits is None else torch.where(mask(bits, x), grad, 0.0)


def unpacked(bits: Tensor) -> Tensor:
    """The bits of bytes ``(…, B)`` as booleans ``(…, 8 · B)``: bit i of byte b is element 8 · b + i."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> places & 1).flatten(-2).bool()
