"""The launches of the spatial gate: pool over channels, apply both gates, and their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tuning import rules, spatial_rules
from ..tuning.keys import Shape
from ..tuning.spaces import Config
from . import launch
from .gating import empty_bits, in_units
from .layout import empty_map


def _start(kernel: Any, like: Tensor, channels_last: bool, maps: dict[str, Tensor | None], **arguments: Any) -> None:
    """Start a kernel that has a program for every image and block of positions of ``like``, given the maps' strides."""
    batch, channels, height, width = like.shape
    positions = height * width
    unit, strides = in_units(channels_last, channels if channels_last else positions, **maps)

    def grid(config: Config) -> tuple[int, ...]:
        return (batch * rules.cdiv(positions, config["BLOCK_P"]),)

    launch.tuned(
        kernel,
        grid,
        Shape.of(like, channels_last),
        spatial_rules.spatial(channels, positions, like.itemsize),
        like.device,
        **arguments,
        **strides,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        CHANNELS_LAST=channels_last,
    )


def pool(x: Tensor, gate: Tensor, channels_last: bool) -> Tensor:
    """Mean and maximum over the channels of ``x · gate``, ``(N, 2, HW)`` float32; ``gate`` ``(N, C)`` float32."""
    from ..kernels.spatial_pool import spatial_pool_kernel

    pooled = empty_pooled(x)
    _start(spatial_pool_kernel, x, channels_last, {"x": x}, pooled_ptr=pooled, x_ptr=x, gate_ptr=gate)
    return pooled


def empty_pooled(x: Tensor, kinds: int = 2) -> Tensor:
    """Room for ``kinds`` float32 values per position."""
    return x.new_empty((x.shape[0], kinds, x.shape[2] * x.shape[3]), dtype=torch.float32)


def apply_fwd(
    x: Tensor,
    gate: Tensor,
    pooled: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    channels_last: bool,
    shortcut: Tensor | None,
    activation: str,
    saves: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``x · gate · act(conv(pooled))``, or ``relu(… + shortcut)``.

    With ``saves`` the spatial gate ``(N, 1, HW)`` float32 and the bits of ReLU's mask come with it, else None.
    """
    from ..kernels.spatial_apply import spatial_apply_fwd_kernel

    y = empty_map(x, channels_last)
    spatial = empty_pooled(x, 1) if saves else None
    bits = empty_bits(x, channels_last) if saves and shortcut is not None else None
    _start(
        spatial_apply_fwd_kernel,
        x,
        channels_last,
        {"y": y, "x": x, "s": shortcut},
        y_ptr=y,
        bits_ptr=bits,
        spatial_ptr=spatial,
        x_ptr=x,
        gate_ptr=gate,
        pooled_ptr=pooled,
        conv_weight_ptr=conv_weight.contiguous(),
        conv_bias_ptr=conv_bias,
        shortcut_ptr=shortcut,
        height=x.shape[2],
        width=x.shape[3],
        ACTIVATION=activation,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_BITS=bits is not None,
        SAVE_GATE=saves,
    )
    return y, spatial, bits


def reading_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    pooled: Tensor,
    spatial: Tensor,
    conv_weight: Tensor,
    channels_last: bool,
    bits: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two passes that read the map.

    Returns the gradients of ``Σ_c u`` and ``max_c u`` ``(N, 2, HW)``, the channel that is the maximum ``(N, HW)``
    int32, and partial sums: of the gradient of ``gate`` ``(N, 2 · B, C)``, and of the convolution's ``(N, B, 196)``.
    """
    from ..kernels.spatial_bwd import spatial_gate_bwd_kernel, spatial_pool_bwd_kernel

    batch, channels, height, width = x.shape
    blocks = rules.cdiv(height * width, spatial_rules.block_p(height * width))
    dlogit, dpooled = empty_pooled(x, 1), torch.empty_like(pooled)
    winner = torch.empty((batch, height * width), dtype=torch.int32, device=x.device)
    dgate = torch.empty((batch, 2 * blocks, channels), dtype=torch.float32, device=x.device)
    dtaps = torch.empty((batch, blocks, 196), dtype=torch.float32, device=x.device)
    _start(
        spatial_gate_bwd_kernel,
        x,
        channels_last,
        {"x": x, "g": grad},
        dlogit_ptr=dlogit,
        winner_ptr=winner,
        dgate_ptr=dgate,
        grad_ptr=grad,
        bits_ptr=bits,
        x_ptr=x,
        gate_ptr=gate,
        pooled_ptr=pooled,
        spatial_ptr=spatial,
        ACTIVATION=activation,
        HAS_BITS=bits is not None,
    )
    _start(
        spatial_pool_bwd_kernel,
        x,
        channels_last,
        {"x": x},
        dpooled_ptr=dpooled,
        dtaps_ptr=dtaps,
        dgate_ptr=dgate,
        x_ptr=x,
        pooled_ptr=pooled,
        dlogit_ptr=dlogit,
        winner_ptr=winner,
        conv_weight_ptr=conv_weight.contiguous(),
        height=height,
        width=width,
    )
    return dpooled, winner, dgate, dtaps


def parameters_bwd(dtaps: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the convolution's weight and bias, of which ``dtaps`` ``(N, B, 196)`` are parts."""
    from ..kernels.conv_parameters import conv_parameters_bwd_kernel

    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    config = spatial_rules.CONV_PARAMETERS
    launch.start(
        conv_parameters_bwd_kernel,
        (rules.cdiv(49, config["BLOCK_K"]),),
        dtaps.device,
        dweight_ptr=dweight,
        dbias_ptr=dbias,
        part_ptr=dtaps,
        parts=dtaps.shape[0] * dtaps.shape[1],
        **config,
    )
    return dweight, dbias


def apply_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    dmean: Tensor,
    spatial: Tensor,
    dpooled: Tensor,
    winner: Tensor,
    channels_last: bool,
    bits: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x, of which only the layout is looked at, and with ``bits`` that of the shortcut, else None."""
    from ..kernels.spatial_apply import spatial_apply_bwd_kernel

    dx = empty_map(x, channels_last)
    dshortcut = None if bits is None else empty_map(x, channels_last)
    _start(
        spatial_apply_bwd_kernel,
        x,
        channels_last,
        {"x": dx, "s": dshortcut, "g": grad},
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        bits_ptr=bits,
        gate_ptr=gate,
        dmean_ptr=dmean,
        spatial_ptr=spatial,
        dpooled_ptr=dpooled,
        winner_ptr=winner,
        HAS_SHORTCUT=bits is not None,
    )
    return dx, dshortcut
