"""The gating multiply by logits that come as a map, as one op: a gate for every element, or for every position.

Passes over the map with a gate per position: 2 forward and 3 backward; the logits count as maps of their own where
there is a gate per element. A shortcut adds one each (and a mask of one bit per element).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.channel_gate import activate
from ..tuning import position_rules, rules
from ..tuning.keys import Shape
from . import launch
from .layout import empty_map, in_layout, rows, served
from .library import Launcher, Op, Results
from .masks import mask
from .passes import in_units, multiply_fake, room, room_bwd
from .shortcut import added, in_one

ACTIVATIONS = ("sigmoid", "double_sigmoid", "none")


def map_gate(x: Tensor, logits: Tensor, shortcut: Tensor | None = None, activation: str = "sigmoid") -> Tensor:
    """``x · act(logits)``, and ``relu(x · act(logits) + shortcut)`` with a shortcut.

    ``x`` ``(N, C, H, W)``; ``logits`` ``(N, C, H, W)`` or ``(N, 1, H, W)``; ``activation`` is one of ``ACTIVATIONS``.
    """
    x, channels_last = served(x.to(torch.promote_types(x.dtype, logits.dtype)))
    last = in_one(x, shortcut)
    y = MAP_GATE(x, _served_logits(logits, channels_last), in_layout(last, channels_last), activation)
    return added(y, shortcut, last)


def _served_logits(logits: Tensor, channels_last: bool) -> Tensor:
    # One channel is contiguous in both layouts.
    return logits.contiguous() if logits.shape[1] == 1 else served(logits, channels_last)[0]


def _empty_logits(logits: Tensor, channels_last: bool) -> Tensor:
    return empty_map(logits, channels_last and logits.shape[1] > 1)


def forward(x: Tensor, logits: Tensor, shortcut: Tensor | None, activation: str, saves: bool) -> Results:
    """The output, and the bits of ReLU's mask for the backward."""
    from ..kernels.map_gate import map_gate_fwd_kernel

    x, channels_last = served(x)
    logits = _served_logits(logits, channels_last)
    shortcut = in_layout(shortcut, channels_last)
    per_channel = logits.shape[1] > 1
    outer, inner = rows(x, channels_last)
    y, bits = room(x, channels_last, shortcut, saves)
    unit, strides = in_units(channels_last, inner, x=x, y=y, z=logits if per_channel else None, s=shortcut)
    launch.tuned(
        map_gate_fwd_kernel,
        lambda config: (
            x.shape[0] * rules.cdiv(outer, config["BLOCK_OUTER"]) * rules.cdiv(inner, config["BLOCK_INNER"]),
        ),
        Shape.of(x, channels_last),
        position_rules.map_gate_fwd(outer, inner, channels_last, per_channel),
        x.device,
        y_ptr=y,
        bits_ptr=bits,
        x_ptr=x,
        logits_ptr=logits,
        shortcut_ptr=shortcut,
        outer_size=outer,
        inner_size=inner // unit,
        ACTIVATION=activation,
        PER_CHANNEL=per_channel,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_BITS=bits is not None,
        CHANNELS_LAST=channels_last,
        **strides,
    )
    return y, bits


def _forward_fake(x: Tensor, logits: Tensor, shortcut: Tensor | None, activation: str, saves: bool) -> Results:
    return multiply_fake(x, shortcut, saves)


def backward(
    grad: Tensor, x: Tensor, logits: Tensor, bits: Tensor | None, activation: str, needs_map: bool, needs_logits: bool
) -> Results:
    """The gradients of x, logits and shortcut.

    None stands for those that are not needed, and for that of a shortcut that there is not (no bits).
    """
    from ..kernels.map_gate import map_gate_bwd_kernel

    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    logits = _served_logits(logits, channels_last)
    per_channel = logits.shape[1] > 1
    batch, channels, height, width = x.shape
    positions = height * width
    dx, dshortcut = room_bwd(x, channels_last, bits, needs_map)
    dlogits = _empty_logits(logits, channels_last) if needs_logits else None
    maps = {"z": logits, "dz": dlogits} if per_channel else {"z": None, "dz": None}
    inner = channels if channels_last else positions
    unit, strides = in_units(channels_last, inner, x=x, g=grad, dx=dx, s=dshortcut, **maps)
    launch.tuned(
        map_gate_bwd_kernel,
        lambda config: (
            batch
            * rules.cdiv(positions, config["BLOCK_P"])
            * (rules.cdiv(channels, config["BLOCK_C"]) if per_channel else 1),
        ),
        Shape.of(x, channels_last),
        position_rules.map_gate_bwd(channels, positions, channels_last, per_channel),
        x.device,
        dx_ptr=dx,
        dlogits_ptr=dlogits,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        bits_ptr=bits,
        x_ptr=x,
        logits_ptr=logits,
        channels=channels // unit if channels_last else channels,
        positions=positions if channels_last else positions // unit,
        ACTIVATION=activation,
        PER_CHANNEL=per_channel,
        HAS_SHORTCUT=bits is not None,
        NEEDS_MAP=needs_map,
        NEEDS_LOGITS=needs_logits,
        CHANNELS_LAST=channels_last,
        **strides,
    )
    return dx, dlogits, dshortcut


def _backward_fake(
    grad: Tensor, x: Tensor, logits: Tensor, bits: Tensor | None, activation: str, needs_map: bool, needs_logits: bool
) -> Results:
    x, channels_last = served(x)
    dx, dshortcut = room_bwd(x, channels_last, bits, needs_map)
    dlogits = _empty_logits(_served_logits(logits, channels_last), channels_last) if needs_logits else None
    return dx, dlogits, dshortcut


def _formula(x: Tensor, logits: Tensor, activation: str) -> Tensor:
    return x * activate(logits, activation)


MAP_GATE = Op(
    Launcher("map_gate", forward, _forward_fake, 2),
    Launcher("map_gate_backward", backward, _backward_fake, 3),
    tensors=3,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[2], needs[1]),
    mask=mask,
)
