"""A gate from a two-layer network at every position, as one op: pixel attention, and the attention gate.

Passes over the map: 2 forward and 3 backward, 3 and 4 with a shortcut (and a mask of one bit per element). All channels
of a position are in one tile, so the hidden layer and the gates are made again where they are needed, and only x is
saved. Above 256 channels the library multiplies (:mod:`.wide_gate`), and :mod:`.map_gate` does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.channel_gate import activate
from ..reference.common import is_autocast
from ..tuning import chips, position_rules, rules
from ..tuning.keys import Shape
from . import launch
from .layout import empty_map, in_layout, is_channels_last, row_stride, rows, served, served_both
from .library import Launcher, Op, Results
from .map_gate import map_gate
from .masks import empty_bits, mask_of_positions
from .partial_sums import partial_sums
from .passes import multiply_fake, room, room_bwd
from .position_network import Parameters, empty_sums, is_wide, map_strides, network_arguments, summed_layer
from .shortcut import added, in_one
from .wide_gate import WIDE_GATE


def pixel_attention(
    x: Tensor, weights: Sequence[Tensor], shortcut: Tensor | None = None, activation: str = "sigmoid"
) -> Tensor:
    """:func:`triton_attn.functional.pixel_attention` on Triton, for arguments that were checked."""
    return position_gate(x, (*weights, None, None), None, shortcut, activation)


def attention_gate(
    x: Tensor,
    weights: Sequence[Tensor],
    gating: Tensor | None = None,
    shortcut: Tensor | None = None,
    activation: str = "sigmoid",
) -> Tensor:
    """:func:`triton_attn.functional.attention_gate` on Triton, for arguments that were checked."""
    weight1, bias1, weight2, bias2, *psi = weights
    if gating is None:
        # Two convolutions of the same map are one; PyTorch adds in float32. Where x is infinite and they would cancel
        # to NaN, their sum is infinite: the one place where a value goes elsewhere than in the reference.
        return position_gate(x, (weight1, bias1, *psi, weight2, bias2), None, shortcut, activation)
    signal = torch.conv2d(gating, weight2, bias2)
    if signal.shape[2:] != x.shape[2:]:
        signal = torch.ops.aten.upsample_bilinear2d.vec(signal, x.shape[2:], False, None)
    return position_gate(x, (weight1, bias1, *psi, None, None), signal, shortcut, activation)


def position_gate(
    x: Tensor, network: tuple[Any, ...], signal: Tensor | None, shortcut: Tensor | None, activation: str
) -> Tensor:
    """``x · σ(weight2 · relu(weight1 · x + bias1 (+ signal)) + bias2)``, and ``relu(… + shortcut)`` with a shortcut.

    ``network`` is weight1 ``(m, C, 1, 1)``, bias1, weight2 ``(C, m, 1, 1)`` for a gate per element, or ``(1, m, 1, 1)``
    for one per position, bias2, and what is added to weight1 and bias1, or None; ``signal`` is ``(N, m, H, W)``; in
    place of σ there may be another ``activation`` of map_gate's.
    """
    if is_autocast(x):
        # The gates would come out in autocast's dtype, and their product with x in the wider of both.
        x = x.to(torch.promote_types(x.dtype, torch.get_autocast_dtype(x.device.type)))
    x, channels_last = served(x)
    last = in_one(x, shortcut)
    sizes = x.shape[1], network[0].shape[0], network[2].shape[0]
    if not position_rules.position_gate_is_fused(
        *sizes, x.itemsize, rows(x, channels_last)[1], has_signal=signal is not None
    ):
        if channels_last and signal is None and x.numel() and not torch.compiler.is_compiling():
            return added(WIDE_GATE(x, *network, in_layout(last, True), activation), shortcut, last)
        return map_gate(x, _logits(x, *network, signal), shortcut, activation)
    maps = in_layout(signal, channels_last), in_layout(last, channels_last)
    return added(POSITION_GATE(x, *network, *maps, activation), shortcut, last)


def _logits(x: Tensor, *network: Any) -> Tensor:
    """What the gate is the sigmoid of, in plain PyTorch."""
    weight1, bias1, weight2, bias2, more_weight, more_bias, signal = network
    if more_weight is not None and more_bias is not None:
        weight1, bias1 = weight1 + more_weight, bias1 + more_bias
    hidden = _convolved(x, weight1, bias1)
    hidden = hidden if signal is None else hidden + signal
    return _convolved(torch.relu(hidden), weight2, bias2)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1×1 convolution; of a channels_last map one matrix product, which adds the bias as it writes."""
    if not is_channels_last(x):
        return torch.conv2d(x, weight, bias)
    rows = torch.nn.functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return rows.permute(0, 3, 1, 2)


class Kept(NamedTuple):
    """What the backward needs: the sums of weights and biases, where there are two, and the bits of ReLU's mask."""

    weight_sum: Tensor | None
    bias_sum: Tensor | None
    bits: Tensor | None


def forward(
    x: Tensor, parameters: Parameters, signal: Tensor | None, shortcut: Tensor | None, activation: str, saves: bool
) -> Results:
    """The output, and what is kept."""
    from ..kernels.position_gate import position_gate_fwd_kernel

    x, channels_last = served(x)
    shortcut = in_layout(shortcut, channels_last)
    y, bits = room(x, channels_last, shortcut, saves, _empty_bits)
    sums = summed_layer(parameters, x.dtype)
    rule = position_rules.position_gate_fwd(*_sizes(x, channels_last, parameters), signal is not None)
    told = network_arguments(x, channels_last, parameters, sums, signal)
    told |= map_strides(channels_last, y=y, x=x, s=shortcut)
    told |= {"y_ptr": y, "bits_ptr": bits, "x_ptr": x, "shortcut_ptr": shortcut, "ACTIVATION": activation}
    told |= {"HAS_SHORTCUT": shortcut is not None, "SAVE_BITS": bits is not None}
    launch.tuned(
        position_gate_fwd_kernel,
        lambda config: (x.shape[0] * rules.cdiv(x.shape[2] * x.shape[3], config["BLOCK_P"]),),
        Shape.of(x, channels_last),
        rule,
        x.device,
        **told,
        WIDE=is_wide(x, y, shortcut, signal),
    )
    return (y, *Kept(sums[0], sums[1], bits)) if saves else (y,)


def _sizes(x: Tensor, channels_last: bool, parameters: Parameters) -> tuple[int, int, int, int, chips.Chip]:
    """What the rules go by."""
    row = rows(x, channels_last)[1]
    return x.shape[1], parameters.weight1.shape[0], x.itemsize, row, chips.chip_of(x.device)


def _forward_fake(
    x: Tensor, parameters: Parameters, signal: Tensor | None, shortcut: Tensor | None, activation: str, saves: bool
) -> Results:
    y, bits = multiply_fake(x, shortcut, saves, bits_of=_empty_bits)
    weight, bias = (None, None) if parameters.more_weight is None else empty_sums(parameters.weight1, x.dtype)
    return (y, *Kept(weight, bias, bits)) if saves else (y,)


def backward(
    grad: Tensor,
    x: Tensor,
    parameters: Parameters,
    signal: Tensor | None,
    kept: Kept,
    activation: str,
    needs_map: bool,
    needs_signal: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, of signal, of shortcut, and of weight1, bias1, weight2 and bias2 in one flat tensor."""
    from ..kernels.position_gate import position_gate_bwd_kernel

    grad, x, channels_last = served_both(grad, x)
    sums, bits = (kept.weight_sum, kept.bias_sum), kept.bits
    batch, _, height, width = x.shape
    rule = position_rules.position_gate_bwd(*_sizes(x, channels_last, parameters))
    tiles = batch * rules.cdiv(height * width, rule["BLOCK_P"])
    programs, run = position_rules.position_gate_runs(x.numel(), tiles, parameters.size)
    dx, dshortcut = room_bwd(x, channels_last, bits, needs_map)
    dsignal = _empty_dsignal(signal, channels_last, needs_signal)
    partials = None
    if needs_weights:
        partials = torch.empty((programs, parameters.size), dtype=torch.float32, device=x.device)
    launch.tuned(
        position_gate_bwd_kernel,
        lambda _: (programs,),
        Shape.of(x, channels_last),
        rule,
        x.device,
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        dsignal_ptr=dsignal,
        partial_ptr=partials,
        grad_ptr=grad,
        bits_ptr=bits,
        x_ptr=x,
        stride_dhn=0 if dsignal is None else dsignal.stride(0),
        stride_dho=0 if dsignal is None else row_stride(dsignal, channels_last),
        tiles=tiles,
        run=run,
        ACTIVATION=activation,
        HAS_SHORTCUT=bits is not None,
        NEEDS_MAP=needs_map,
        NEEDS_SIGNAL=dsignal is not None,
        NEEDS_WEIGHTS=needs_weights,
        WIDE=is_wide(x, grad, dx, dshortcut, signal, dsignal),
        **network_arguments(x, channels_last, parameters, sums, signal),
        **map_strides(channels_last, x=x, d=dx, s=dshortcut, g=grad),
    )
    return dx, dsignal, dshortcut, None if partials is None else partial_sums(partials, parameters.weight1.dtype)


def _backward_fake(grad: Tensor, x: Tensor, parameters: Parameters, *others: Any) -> Results:
    signal, kept, _, needs_map, needs_signal, needs_weights = others
    x, channels_last = served(x)
    dx, dshortcut = room_bwd(x, channels_last, kept.bits, needs_map)
    flat = parameters.weight1.new_empty(parameters.size) if needs_weights else None
    return dx, _empty_dsignal(signal, channels_last, needs_signal), dshortcut, flat


def _empty_dsignal(signal: Tensor | None, channels_last: bool, needed: bool) -> Tensor | None:
    return empty_map(*served(signal, channels_last)) if needed and signal is not None else None


def _empty_bits(x: Tensor, _: bool) -> Tensor:
    """Room for the mask of a map, eight channels of a position to a byte in both layouts."""
    return empty_bits(x, channels_last=True)


def _gradients(found: Results, tensors: Results) -> Results:
    dx, dsignal, dshortcut, flat = found
    parameters: Results = (None,) * 4
    if flat is not None:
        own = [t for t in tensors[1:5] if t is not None]
        if type(flat) is Tensor:  # views of it, all in one call, which knows no symbolic sizes
            parameters = torch._C._nn.unflatten_dense_tensors(flat, own)
        else:
            pieces = flat.split([t.numel() for t in own])
            parameters = [each.view(t.shape) for each, t in zip(pieces, own, strict=True)]
    # What was added has the gradient of the sum.
    return dx, *parameters, *parameters[:2], dsignal, dshortcut


def _formula(x: Tensor, *network: Any) -> Tensor:
    *tensors, activation = network
    return x * activate(_logits(x, *tensors), activation)


POSITION_GATE = Op(
    Launcher("position_gate", forward, _forward_fake, 4),
    Launcher("position_gate_backward", backward, _backward_fake, 4),
    tensors=9,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[8], needs[7], any(needs[1:7])),
    gradients=_gradients,
    mask=mask_of_positions,
)
