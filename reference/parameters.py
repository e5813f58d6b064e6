"""The functions' parameters: whether they fit together."""

from __future__ import annotations

from torch import Tensor

Dense = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Of a gate network: weight1, bias1, weight2, bias2."""


def check_pointwise_weight(name: str, weight: Tensor, rows: str, columns: str) -> tuple[int, int]:
    """The sizes of a 1×1 convolution's weight, or a ValueError that says what ``rows`` and ``columns`` stand for."""
    expected = f"{name} must be ({rows}, {columns}, 1, 1)"
    if weight.dim() != 4 or weight.shape[2:] != (1, 1):
        raise ValueError(f"{expected}, got shape {tuple(weight.shape)}")
    if 0 in weight.shape:
        raise ValueError(f"{expected}, both at least 1, got shape {tuple(weight.shape)}")
    return weight.shape[0], weight.shape[1]


def check_parameter(name: str, value: Tensor, shape: tuple[int, ...], first: Tensor, beside: str = "") -> None:
    """Check a parameter's shape, and that it has the dtype and the device of ``first``, which is weight1."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must be {shape}{beside}, got {tuple(value.shape)}")
    if value.dtype != first.dtype:
        raise TypeError(f"{name} is {value.dtype}, but weight1 is {first.dtype}")
    if value.device != first.device:
        raise ValueError(f"{name} is on {value.device}, but weight1 is on {first.device}")
