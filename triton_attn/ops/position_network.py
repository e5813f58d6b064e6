"""The gate network of :mod:`.position_gate` as its kernels take it: its layers, the strides of maps, their reach."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from ..tuning import chips, rules
from . import launch
from .layout import in_layout, row_stride, rows
from .passes import in_units


class Parameters(NamedTuple):
    """The layers, and what is added to the first: weights ``(m, C, 1, 1)``, then ``(C or 1, m, 1, 1)``."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    more_weight: Tensor | None
    more_bias: Tensor | None

    @property
    def size(self) -> int:
        """How many numbers the layers have."""
        return sum(each.numel() for each in self[:4] if each is not None)


def empty_sums(weight1: Tensor, dtype: torch.dtype, bias_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Room for a sum of weights, as it is multiplied, and of biases."""
    return weight1.new_empty(weight1.shape, dtype=dtype), weight1.new_empty(len(weight1), dtype=bias_dtype)


def summed_layer(
    parameters: Parameters, dtype: torch.dtype, bias_dtype: torch.dtype = torch.float32
) -> tuple[Tensor | None, Tensor | None]:
    """The sum of the two first layers, where there are two, weights and bias in these dtypes."""
    weight1, bias1, _, _, more_weight, more_bias = parameters
    if more_weight is None or more_bias is None:
        return None, None
    from ..kernels.position_gate import summed_layer_kernel

    weight, bias = empty_sums(weight1, dtype, bias_dtype)
    block = 1024
    launch.start(
        summed_layer_kernel,
        (rules.cdiv(weight.numel(), block),),
        weight.device,
        weight_ptr=weight,
        bias_ptr=bias,
        weight1_ptr=weight1.contiguous(),
        bias1_ptr=bias1.contiguous(),
        more_weight_ptr=more_weight.contiguous(),
        more_bias_ptr=more_bias.contiguous(),
        size=weight.numel(),
        hidden=bias.numel(),
        BLOCK=block,
    )
    return weight, bias


def network_arguments(
    x: Tensor,
    channels_last: bool,
    parameters: Parameters,
    sums: tuple[Tensor | None, Tensor | None],
    signal: Tensor | None,
) -> dict[str, Any]:
    """The launch arguments of the gate network, of the sum of its first layers where there is one, and of its dots."""
    import triton.language as tl

    weight1, bias1, weight2, bias2, _, _ = parameters
    weight1, bias1 = sums[0] if sums[0] is not None else weight1, sums[1] if sums[1] is not None else bias1
    signal = in_layout(signal, channels_last)
    dot = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[x.dtype]
    if dot == tl.bfloat16 and backend.interpreting():
        dot = tl.float32  # the interpreter cannot multiply bfloat16
    return {
        "weight1_ptr": weight1.contiguous(),
        "bias1_ptr": bias1.contiguous(),
        "weight2_ptr": weight2.contiguous(),
        "bias2_ptr": bias2.contiguous(),
        "signal_ptr": signal,
        "stride_hn": 0 if signal is None else signal.stride(0),
        "stride_ho": 0 if signal is None else row_stride(signal, channels_last),
        "CHANNELS": weight1.shape[1],
        "HIDDEN": weight1.shape[0],
        "PER_CHANNEL": weight2.shape[0] > 1,
        "HAS_SIGNAL": signal is not None,
        "DOT": dot,
        "PRECISION": chips.precision(x.dtype, chips.chip_of(x.device)),
    }


def map_strides(channels_last: bool, x: Tensor, **maps: Tensor | None) -> dict[str, Any]:
    """Strides and positions of maps like ``x``, in units."""
    unit, strides = in_units(channels_last, rows(x, channels_last)[1], x=x, **maps)
    positions = x.shape[2] * x.shape[3]
    return {"CHANNELS_LAST": channels_last, "positions": positions if channels_last else positions // unit, **strides}


def is_wide(*maps: Tensor | None) -> bool:
    """Whether an element of an image of one of the maps lies 2³¹ elements or more behind its first."""
    shapes = ((t.shape[1:], t.stride()[1:]) for t in maps if t is not None)
    return any(sum((size - 1) * stride for size, stride in zip(*each, strict=True)) >= 2**31 for each in shapes)
