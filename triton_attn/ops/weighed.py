"""Steps whose pools have weights: sums over positions and over channels in one pass, and the multiplies behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tuning import rules, weighed_rules
from .layout import in_layout, served, served_both
from .library import Launcher, Results, new_like
from .partial_sums import partial_sums
from .passes import multiply, multiply_bwd, multiply_fake, room_bwd, sums
from .spans import start


def _parts(x: Tensor, channels_last: bool) -> tuple[int, int]:
    """In how many parts sums over positions come, and sums over channels."""
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    rule = weighed_rules.weighed(channels, positions, channels_last)
    return rules.cdiv(positions, rule["SPAN"]), rules.cdiv(channels, rule["BLOCK_C"])


def _sums(
    x: Tensor,
    channels_last: bool,
    *,
    for_channels: bool = True,
    for_positions: bool = True,
    grad: Tensor | None = None,
    bits: Tensor | None = None,
    channel_weight: Tensor | None = None,
    position_weight: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Sums over positions ``(N, C)`` and over channels ``(N, 1, H, W)``, float32; None for those not wanted."""
    from ..kernels.weighed_sums import weighed_sums_kernel

    batch, channels, height, width = x.shape
    spans, blocks = _parts(x, channels_last)
    of_channels = x.new_empty((batch, spans, channels), dtype=torch.float32) if for_channels else None
    of_positions = x.new_empty((batch, blocks, height, width), dtype=torch.float32) if for_positions else None
    of_each_image = channel_weight is not None and channel_weight.dim() == 2
    sums(
        start,
        weighed_sums_kernel,
        grad,
        x,
        channels_last,
        bits,
        of_channels_ptr=of_channels,
        of_positions_ptr=of_positions,
        channel_weight_ptr=channel_weight,
        position_weight_ptr=position_weight,
        stride_wn=channels if of_each_image else 0,
        spans=spans,
        FOR_CHANNELS=for_channels,
        FOR_POSITIONS=for_positions,
        GATED=grad is not None,
        WEIGHED=position_weight is not None,
    )
    whole = None if of_positions is None else _whole(of_positions)
    return None if of_channels is None else _whole(of_channels), None if whole is None else whole.unsqueeze(1)


def _whole(parts: Tensor) -> Tensor:
    """The sum over axis 1."""
    if parts.shape[1] == 1:
        return parts.squeeze(1)
    return torch.sum(parts, 1, out=parts.new_empty((parts.shape[0], *parts.shape[2:])))


def _empty_vector(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


def _empty_plane(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], 1, *x.shape[2:]), dtype=torch.float32)


def _pool(x: Tensor, weight: Tensor, sums: bool) -> Results:
    x, channels_last = served(x)
    of_channels, logits = _sums(x, channels_last, for_channels=sums, channel_weight=weight.contiguous())
    return logits, of_channels


def _pool_fake(x: Tensor, weight: Tensor, sums: bool) -> Results:
    return _empty_plane(x), _empty_vector(x) if sums else None


def _mean(x: Tensor, weights: Tensor) -> Results:
    x, channels_last = served(x)
    return (_sums(x, channels_last, for_positions=False, position_weight=weights.contiguous())[0],)


def _mean_fake(x: Tensor, weights: Tensor) -> Results:
    return (_empty_vector(x),)


def _mean_bwd(x: Tensor, dmean: Tensor) -> Results:
    x, channels_last = served(x)
    return (_sums(x, channels_last, for_channels=False, channel_weight=dmean.contiguous())[1],)


def _mean_bwd_fake(x: Tensor, dmean: Tensor) -> Results:
    return (_empty_plane(x),)


def _apply(x: Tensor, channel_gate: Tensor, position_gate: Tensor, shortcut: Tensor | None, saves: bool) -> Results:
    from ..kernels.weighed_apply import sum_apply_fwd_kernel

    x, channels_last = served(x)
    gates: dict[str, Any] = {"channel_gate_ptr": channel_gate.contiguous()}
    gates["position_gate_ptr"] = position_gate.contiguous()
    return multiply(start, sum_apply_fwd_kernel, x, channels_last, in_layout(shortcut, channels_last), saves, **gates)


def _gates_bwd(grad: Tensor, x: Tensor, bits: Tensor | None) -> Results:
    grad, x, channels_last = served_both(grad, x)
    return _sums(x, channels_last, grad=grad, bits=bits)


def _gates_bwd_fake(grad: Tensor, x: Tensor, bits: Tensor | None) -> Results:
    return _empty_vector(x), _empty_plane(x)


def _map_bwd(
    grad: Tensor,
    x: Tensor,
    bits: Tensor | None,
    channel_gate: Tensor,
    position_gate: Tensor | None,
    dpooled: Tensor,
    position_weight: Tensor | None,
    dlogits: Tensor,
    weight: Tensor,
    needs_weight: bool,
) -> Results:
    """The gradients of x, of the shortcut and of the channels' weights; None for those that there are not."""
    from ..kernels.weighed_apply import weighed_apply_bwd_kernel

    grad, x, channels_last = served_both(grad, x)
    spans = _parts(x, channels_last)[0]
    dweight = x.new_empty((x.shape[0] * spans, x.shape[1]), dtype=torch.float32) if needs_weight else None
    vectors = {
        "channel_gate_ptr": channel_gate,
        "position_gate_ptr": position_gate,
        "dpooled_ptr": dpooled,
        "position_weight_ptr": position_weight,
        "dlogit_ptr": dlogits,
        "weight_ptr": weight,
    }
    told: dict[str, Any] = {name: None if each is None else each.contiguous() for name, each in vectors.items()}
    told |= {"dweight_ptr": dweight, "spans": spans, "ADDED": position_gate is not None, "NEEDS_WEIGHT": needs_weight}
    kernel = weighed_apply_bwd_kernel
    dx, dshortcut = multiply_bwd(start, kernel, grad, x, channels_last, bits, needs_weight, **told)
    return dx, dshortcut, None if dweight is None else partial_sums(dweight, weight.dtype)


def gradients(
    needs_weight: bool,
    grad: Tensor,
    x: Tensor,
    gates: tuple[Tensor, Tensor | None, Tensor | None],
    dpooled: tuple[Tensor | None, Tensor | None],
    weights: tuple[Tensor | None, Tensor],
) -> Any:
    """What the backward of a step returns that pools x by weights, and hands on a shortcut: for (link, x, weight, it).

    Args:
        needs_weight: whether its weight has a gradient.
        grad, x: y's gradient as it came, and the map.
        gates: of the channels and of the positions, with which y was made, and the bits of its mask.
        dpooled: the gradients of the sums over positions and over channels; None where these were not used.
        weights: those of the positions, and of the channels.
    """
    gate, of_positions, bits = gates
    dsums, dlogits = dpooled
    dsums = torch.zeros_like(gate) if dsums is None else dsums
    dlogits = _empty_plane(x).zero_() if dlogits is None else dlogits
    found = MAP_BWD(grad, x, bits, gate, of_positions, dsums, weights[0], dlogits, weights[1], needs_weight)
    dx, dshortcut, dweight = found
    return None, dx, dweight, dshortcut


def _map_bwd_fake(grad: Tensor, x: Tensor, bits: Tensor | None, *others: Any) -> Results:
    *_, weight, needs_weight = others
    return *room_bwd(*served(x), bits), *new_like(weight, needed=needs_weight)


POOL = Launcher("weighed_pool", _pool, _pool_fake, 2)
"""Of x and weights ``(C,)`` their sum over channels ``(N, 1, H, W)``, and sums over positions ``(N, C)``, if wanted."""

MEAN = Launcher("weighed_mean", _mean, _mean_fake, 1)
"""Of x and weights ``(N, 1, H, W)`` the sum over positions ``(N, C)``."""

MEAN_BWD = Launcher("weighed_mean_backward", _mean_bwd, _mean_bwd_fake, 1)
"""The gradient of :data:`MEAN`'s weights."""

APPLY = Launcher("apply_sum_of_gates", _apply, multiply_fake, 2)
GATES_BWD = Launcher("apply_sum_of_gates_backward_gates", _gates_bwd, _gates_bwd_fake, 2)
MAP_BWD = Launcher("weighed_backward_map", _map_bwd, _map_bwd_fake, 3)
