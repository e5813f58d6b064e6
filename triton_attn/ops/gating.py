"""The steps that gating ops are made of, each one launch: squeeze, the layers of the gate network, apply."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..tuning import rules
from . import launch
from .layout import empty_map, row_stride, rows


def in_units(channels_last: bool, inner: int, **maps: Tensor | None) -> tuple[int, dict[str, int]]:
    """The launch arguments ``UNIT`` and ``stride_<map>n`` and ``stride_<map>o`` in units, 0 for a map that is None."""
    given = [t for t in maps.values() if t is not None]
    strides = {f"stride_{name}n": 0 if t is None else t.stride(0) for name, t in maps.items()}
    strides |= {f"stride_{name}o": 0 if t is None else row_stride(t, channels_last) for name, t in maps.items()}
    unit = rules.unit(given[0].itemsize, math.gcd(*(t.stride(0) for t in given)), inner, *strides.values())
    return unit, {"UNIT": unit, **{name: stride // unit for name, stride in strides.items()}}


def channel_sum(x: Tensor, channels_last: bool, grad: Tensor | None = None, bits: Tensor | None = None) -> Tensor:
    """``Σ x`` over positions, or ``Σ grad · x`` with ``grad`` behind the mask that ``bits`` hold.

    Returns partial sums ``(N, S, C)`` in float32, one for each of the ``S`` splits of the positions.
    """
    from ..kernels.channel_sum import channel_sum_kernel

    batch, channels, height, width = x.shape
    positions = height * width
    splits = max(rules.cdiv(positions, rules.SPLIT), 1)
    config = rules.channel_sum(channels, positions, channels_last)
    unit, strides = in_units(channels_last, channels if channels_last else positions, x=x, g=grad)
    sums = torch.empty((batch, splits, channels), dtype=torch.float32, device=x.device)
    launch.start(
        channel_sum_kernel,
        (batch * splits * rules.cdiv(channels, config["BLOCK_C"]),),
        x.device,
        sum_ptr=sums,
        x_ptr=x,
        grad_ptr=grad,
        bits_ptr=bits,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        splits=splits,
        SPLIT=rules.SPLIT,
        HAS_GRAD=grad is not None,
        HAS_BITS=bits is not None,
        CHANNELS_LAST=channels_last,
        **strides,
        **config,
    )
    return sums


def dense_fwd(
    vectors: Tensor, weight: Tensor, bias: Tensor, *, sigmoid: bool, divisor: float = 1.0, save_input: bool = False
) -> tuple[Tensor, Tensor]:
    """``act(weight · (Σ_s vectors / divisor) + bias)``, with a sigmoid or else ReLU.

    ``vectors`` ``(N, S, I)`` float32, ``weight`` ``(O, I)``. Returns the output ``(N, O)`` and, with ``save_input``,
    the input as it was used, ``(N, I)``, both float32.
    """
    from ..kernels.dense import dense_fwd_kernel

    batch, splits, in_size = vectors.shape
    out_size = weight.shape[0]
    block_n, block_i, block_o, num_warps = rules.dense(in_size, out_size)
    out = torch.empty((batch, out_size), dtype=torch.float32, device=vectors.device)
    saved = torch.empty((batch, in_size) if save_input else (0,), dtype=torch.float32, device=vectors.device)
    launch.start(
        dense_fwd_kernel,
        (rules.cdiv(batch, block_n), rules.cdiv(out_size, block_o)),
        vectors.device,
        out_ptr=out,
        in_ptr=vectors,
        saved_ptr=saved,
        weight_ptr=weight.contiguous(),
        bias_ptr=bias.contiguous(),
        batch=batch,
        in_size=in_size,
        out_size=out_size,
        splits=splits,
        divisor=float(divisor),
        SAVE_INPUT=save_input,
        SIGMOID=sigmoid,
        BLOCK_N=block_n,
        BLOCK_O=block_o,
        BLOCK_I=block_i,
        num_warps=num_warps,
    )
    return out, saved


def dense_bwd(
    dout: Tensor, out: Tensor, weight: Tensor, *, sigmoid: bool, divisor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The gradient of a layer's input before its division, ``(N, I)``, and that of its logits, ``(N, O)``; float32.

    ``dout`` ``(N, S, O)`` and ``out`` ``(N, O)`` float32, ``weight`` ``(O, I)``.
    """
    from ..kernels.dense import dense_bwd_kernel

    batch, splits, out_size = dout.shape
    in_size = weight.shape[1]
    block_n, block_o, block_i, num_warps = rules.dense(out_size, in_size)
    din = torch.empty((batch, in_size), dtype=torch.float32, device=dout.device)
    dlogit = torch.empty((batch, out_size), dtype=torch.float32, device=dout.device)
    launch.start(
        dense_bwd_kernel,
        (rules.cdiv(batch, block_n), rules.cdiv(in_size, block_i)),
        dout.device,
        din_ptr=din,
        dlogit_ptr=dlogit,
        dout_ptr=dout,
        out_ptr=out,
        weight_ptr=weight.contiguous(),
        batch=batch,
        in_size=in_size,
        out_size=out_size,
        splits=splits,
        divisor=float(divisor),
        SIGMOID=sigmoid,
        BLOCK_N=block_n,
        BLOCK_O=block_o,
        BLOCK_I=block_i,
        num_warps=num_warps,
    )
    return din, dlogit


def bottleneck_weights_bwd(
    mean: Tensor, dlogit1: Tensor, hidden: Tensor, dlogit2: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of weight1 ``(M, C)``, bias1, weight2 ``(C, M)`` and bias2, in ``dtype``.

    ``mean`` and ``dlogit2`` ``(N, C)``, ``dlogit1`` and ``hidden`` ``(N, M)``, all float32.
    """
    from ..kernels.dense import bottleneck_weights_bwd_kernel

    batch, channels = mean.shape
    hidden_size = hidden.shape[1]
    config = rules.bottleneck_weights(channels, hidden_size)
    shapes = ((hidden_size, channels), (hidden_size,), (channels, hidden_size), (channels,))
    dweight1, dbias1, dweight2, dbias2 = (torch.empty(shape, dtype=dtype, device=mean.device) for shape in shapes)
    launch.start(
        bottleneck_weights_bwd_kernel,
        (rules.cdiv(channels, config["BLOCK_C"]), rules.cdiv(hidden_size, config["BLOCK_M"])),
        mean.device,
        dweight1_ptr=dweight1,
        dbias1_ptr=dbias1,
        dweight2_ptr=dweight2,
        dbias2_ptr=dbias2,
        mean_ptr=mean,
        dlogit1_ptr=dlogit1,
        hidden_ptr=hidden,
        dlogit2_ptr=dlogit2,
        batch=batch,
        channels=channels,
        hidden_size=hidden_size,
        **config,
    )
    return dweight1, dbias1, dweight2, dbias2


def apply_fwd(
    x: Tensor, gate: Tensor, channels_last: bool, shortcut: Tensor | None = None, save_bits: bool = False
) -> tuple[Tensor, Tensor]:
    """``x · gate``, or ``relu(x · gate + shortcut)``, and the bits of ReLU's mask if they are to be saved.

    ``gate`` ``(N, C)`` float32. The bits are ``(N, outer, ceil(inner / 8))`` uint8.
    """
    from ..kernels.apply_gate import apply_gate_fwd_kernel

    outer, inner = rows(x, channels_last)
    config = rules.apply_gate(outer, inner, channels_last)
    y = empty_map(x, channels_last)
    bits = empty_bits(x, channels_last, save_bits)
    unit, strides = in_units(channels_last, inner, y=y, x=x, s=shortcut)
    launch.start(
        apply_gate_fwd_kernel,
        (x.shape[0] * rules.cdiv(outer, config["BLOCK_OUTER"]) * rules.cdiv(inner, config["BLOCK_INNER"]),),
        x.device,
        y_ptr=y,
        bits_ptr=bits,
        x_ptr=x,
        gate_ptr=gate,
        shortcut_ptr=shortcut,
        outer_size=outer,
        inner_size=inner // unit,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_BITS=save_bits,
        CHANNELS_LAST=channels_last,
        **strides,
        **config,
    )
    return y, bits


def apply_bwd(
    grad: Tensor, x: Tensor, gate: Tensor, dsum: Tensor, channels_last: bool, bits: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``dx = grad · gate + dsum``, and with ``bits`` the gradient of the shortcut (else an empty tensor).

    ``gate`` and ``dsum`` ``(N, C)`` float32. Of ``x`` only the layout is looked at.
    """
    from ..kernels.apply_gate import apply_gate_bwd_kernel

    outer, inner = rows(grad, channels_last)
    config = rules.apply_gate(outer, inner, channels_last)
    dx = empty_map(x, channels_last)
    dshortcut = None if bits is None else empty_map(x, channels_last)
    unit, strides = in_units(channels_last, inner, x=dx, s=dshortcut, g=grad)
    launch.start(
        apply_gate_bwd_kernel,
        (grad.shape[0] * rules.cdiv(outer, config["BLOCK_OUTER"]) * rules.cdiv(inner, config["BLOCK_INNER"]),),
        grad.device,
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        bits_ptr=bits,
        gate_ptr=gate,
        dsum_ptr=dsum,
        outer_size=outer,
        inner_size=inner // unit,
        HAS_SHORTCUT=bits is not None,
        CHANNELS_LAST=channels_last,
        **strides,
        **config,
    )
    return dx, grad.new_empty(0) if dshortcut is None else dshortcut


def empty_bits(x: Tensor, channels_last: bool, wanted: bool) -> Tensor:
    """Room for the mask of a map, eight positions of a row to a byte, or an empty tensor."""
    outer, inner = rows(x, channels_last)
    shape = (x.shape[0], outer, rules.cdiv(inner, 8)) if wanted else (0,)
    return torch.empty(shape, dtype=torch.uint8, device=x.device)
