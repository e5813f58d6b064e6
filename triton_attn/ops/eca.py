"""Channel gates by a convolution over neighbouring channels (ECA) as one op: a map in, the gated map out.

Passes over the map as for :mod:`.channel_gate`: 3 forward and 4 backward, 4 and 5 with a shortcut. The convolution is
computed where the gates are applied, its weight's gradient where the gates' is: 2 launches forward and 3 backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import gating
from .gating import Network, Pooled, or_empty, or_none
from .layout import empty_map, served
from .library import below_autograd, register
from .partial_sums import partial_sums

Tensors = tuple[Tensor, ...]


def eca(
    x: Tensor, weight: Tensor, shortcut: Tensor | None = None, *, pool: str = "mean", activation: str = "sigmoid"
) -> Tensor:
    """:func:`triton_attn.functional.eca` on Triton, for arguments that were checked."""
    x, channels_last = served(x)
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(eca(x, weight, pool=pool, activation=activation) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    saves = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, shortcut))
    return _forward_op(x, weight, shortcut, pool, activation, saves)[0]


def forward(x: Tensor, weight: Tensor, shortcut: Tensor | None, pool: str, activation: str, saves: bool) -> Tensors:
    """The output, and what the backward needs: the pooled vectors, the gate, the bits of ReLU's mask."""
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    network = Network("neighbours", weight.numel(), pool, activation)
    pooled, _ = gating.squeeze(x, channels_last, network, saves=saves)
    weights = {"bias1_ptr": None, "weight_ptr": weight.contiguous(), "bias2_ptr": None}
    y, gate, bits = gating.apply_fwd(x, channels_last, network, weights, pooled, shortcut=shortcut, saves=saves)
    kept = (pooled.sums, pooled.peak, pooled.winner, gate, bits) if saves else (None,) * 5
    return y, *(or_empty(x, each) for each in kept)


def _forward_fake(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, pool: str, activation: str, saves: bool
) -> Tensors:
    x, channels_last = served(x)
    y = empty_map(x, channels_last)
    if not saves:
        return y, *(x.new_empty(0) for _ in range(5))
    network = Network("neighbours", weight.numel(), pool, activation)
    return (
        y,
        *(or_empty(x, each) for each in gating.empty_pooled(x, network)),
        x.new_empty(x.shape[:2], dtype=torch.float32),
        x.new_empty(0) if shortcut is None else gating.empty_bits(x, channels_last),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    sums: Tensor,
    peak: Tensor,
    winner: Tensor,
    gate: Tensor,
    bits: Tensor,
    pool: str,
    activation: str,
    needs_map: bool,
    needs_weight: bool,
) -> Tensors:
    """The gradients of x, weight and shortcut; empty where not needed, and where there is no shortcut (no bits)."""
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    network = Network("neighbours", weight.numel(), pool, activation)
    pooled = Pooled(*(or_none(each) for each in (sums, peak, winner)))
    mask = or_none(bits)
    dlogit, partial = gating.squeeze_bwd(
        grad, x, gate, mask, channels_last, network, None, pooled if needs_weight else None
    )
    dx = dweight = dshortcut = None
    if needs_weight:
        dweight = partial_sums(partial.flatten(0, 1), weight.dtype).view_as(weight)
    if needs_map:
        weights = {"bias1_ptr": None, "weight_ptr": weight.contiguous()}
        dx, dshortcut = gating.apply_bwd(grad, x, gate, mask, channels_last, network, weights, pooled, dlogit=dlogit)
    return tuple(or_empty(x, each) for each in (dx, dweight, dshortcut))


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    sums: Tensor,
    peak: Tensor,
    winner: Tensor,
    gate: Tensor,
    bits: Tensor,
    pool: str,
    activation: str,
    needs_map: bool,
    needs_weight: bool,
) -> Tensors:
    x, channels_last = served(x)
    return (
        empty_map(x, channels_last) if needs_map else x.new_empty(0),
        weight.new_empty(weight.shape) if needs_weight else x.new_empty(0),
        empty_map(x, channels_last) if needs_map and bits.dim() > 1 else x.new_empty(0),
    )


class _ECA(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensors:
        return below_autograd(_forward_op, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        x, weight, _, *ctx.network, _ = inputs
        _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, *saved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needs_x, needs_weight, needs_shortcut, *_ = ctx.needs_input_grad
        if grad is None or not (needs_x or needs_weight or needs_shortcut):
            return (None,) * 6
        grads = _backward_op(grad, *ctx.saved_tensors, *ctx.network, needs_x or needs_shortcut, needs_weight)
        # What was not asked for came back empty.
        wanted = (each if needed else None for each, needed in zip(grads, ctx.needs_input_grad[:3], strict=True))
        return *wanted, None, None, None


_forward_op = register(
    "eca(Tensor x, Tensor weight, Tensor? shortcut, str pool, str activation, bool saves)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward,
    _forward_fake,
    _ECA,
)
_backward_op = register(
    "eca_backward(Tensor grad, Tensor x, Tensor weight, Tensor sums, Tensor peak, Tensor winner,"
    " Tensor gate, Tensor bits, str pool, str activation, bool needs_map, bool needs_weight)"
    " -> (Tensor, Tensor, Tensor)",
    backward,
    _backward_fake,
)
