"""The gating multiply by logits that come as a map, as one op: a gate for every element, or for every position.

Passes over the map with a gate per position: 2 forward and 3 backward; the logits count as maps of their own where
there is a gate per element. A shortcut adds one each (and a mask of one bit per element).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.channel_gate import activate
from ..tuning import position_rules
from .layout import empty_map, in_layout, rows, served, served_both
from .library import Launcher, Op, Results
from .masks import mask
from .passes import Maps, multiply, multiply_fake, room_bwd, start_over
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
    rule = position_rules.map_gate_fwd(outer, inner, channels_last, per_channel)
    sizes = {"outer_size": (outer, "BLOCK_OUTER"), "inner_size": (inner, "BLOCK_INNER")}

    def start(kernel: Any, x: Tensor, channels_last: bool, maps: Maps, **arguments: Any) -> None:
        maps = {**maps, "z": logits if per_channel else None}
        start_over(kernel, x, channels_last, rule, sizes, maps, **arguments)

    told: dict[str, Any] = {"logits_ptr": logits, "ACTIVATION": activation, "PER_CHANNEL": per_channel}
    return multiply(start, map_gate_fwd_kernel, x, channels_last, shortcut, saves, **told)


def _forward_fake(x: Tensor, logits: Tensor, shortcut: Tensor | None, activation: str, saves: bool) -> Results:
    return multiply_fake(x, shortcut, saves)


def backward(
    grad: Tensor, x: Tensor, logits: Tensor, bits: Tensor | None, activation: str, needs_map: bool, needs_logits: bool
) -> Results:
    """The gradients of x, logits and shortcut."""
    from ..kernels.map_gate import map_gate_bwd_kernel

    grad, x, channels_last = served_both(grad, x)
    logits = _served_logits(logits, channels_last)
    per_channel = logits.shape[1] > 1
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    dx, dshortcut = room_bwd(x, channels_last, bits, needs_map)
    dlogits = _empty_logits(logits, channels_last) if needs_logits else None
    maps = {"z": logits, "dz": dlogits} if per_channel else {"z": None, "dz": None}
    start_over(
        map_gate_bwd_kernel,
        x,
        channels_last,
        position_rules.map_gate_bwd(channels, positions, channels_last, per_channel),
        {"channels": (channels, "BLOCK_C" if per_channel else ""), "positions": (positions, "BLOCK_P")},
        {"x": x, "g": grad, "dx": dx, "s": dshortcut, **maps},
        dx_ptr=dx,
        dlogits_ptr=dlogits,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        bits_ptr=bits,
        x_ptr=x,
        logits_ptr=logits,
        ACTIVATION=activation,
        PER_CHANNEL=per_channel,
        HAS_SHORTCUT=bits is not None,
        NEEDS_MAP=needs_map,
        NEEDS_LOGITS=needs_logits,
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
