"""Non-local attention as one op: ``x + softmax(scale · q kᵀ) v``, with or without the tail of a residual block.

q, k and v are (N, positions, channels), the maps (N, C, H, W) of the same layout. They come as three tensors, or as
one, side by side along the channels: as one matrix product made them, and as one it takes their gradient.

Two ways, by shape (:func:`..tuning.attention_rules.keeps_rows`):

* tiled (:mod:`.non_local_tiled`): no score is ever in memory. What is kept for the backward is linear in the positions:
  q, k, v, the norms of every row, and what was attended, o, for ``delta = Σ grad · o``.
* whole rows (:mod:`.non_local_whole`), on small maps: the softmax is kept, and the backward is four batched matrix
  products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import non_local as plain
from . import non_local_tiled as tiled
from . import non_local_whole as whole
from .layout import served
from .library import Launcher, Op, Results, as_kept, gradients_of, keep
from .masks import unpacked
from .non_local_problem import gradients, laid_out, map_rows, output, problem, split_sizes


def non_local(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    x: Tensor | None = None,
    shortcut: Tensor | None = None,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """``x + attention``, ``relu(x + attention + shortcut)``, or without a map the attention ``(N, L, dv)`` alone.

    Args:
        q, k, v: ``(N, L, d)``, ``(N, S, d)`` and ``(N, S, dv)``; or ``q`` holds all three, ``(N, L, 2 d + dv)``, with
            as many values as ``x`` has channels.
        x: ``(N, dv, H, W)`` with ``H·W = L``.
        shortcut: of ``x``'s shape.
        key_bias, value_bias: ``(d,)`` and ``(dv,)``, with ``x``: what k and v come without, and are attended as if
            they had it.
        scale: of the scores.
    """
    if x is not None:
        x, channels_last = served(x)
        if shortcut is not None and shortcut.dtype != torch.promote_types(x.dtype, q.dtype):
            # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
            attended = non_local(q, k, v, x=x, key_bias=key_bias, value_bias=value_bias, scale=scale)
            return torch.relu(attended + shortcut)
        if shortcut is not None:
            shortcut, _ = served(shortcut, channels_last)
    return NON_LOCAL(x, q, k, v, shortcut, key_bias, value_bias, float(scale))


class Kept(NamedTuple):
    """What the backward needs: o or the softmax, the norms of rows (tiled), the bits of ReLU's mask."""

    kept: Tensor | None
    norms: Tensor | None
    bits: Tensor | None


class Needs(NamedTuple):
    """Which gradients are needed; of q's all three where they are one tensor."""

    needs_q: bool
    needs_k: bool
    needs_v: bool


def forward(
    x: Tensor | None,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    shortcut: Tensor | None,
    key_bias: Tensor | None,  # not read: it shifts whole rows of scores, of which a softmax sees nothing
    value_bias: Tensor | None,
    scale: float,
    saves: bool,
) -> Results:
    """The output, and what is kept."""
    out = output(x, q, k, v, shortcut, saves)
    (whole if out.given.keeps_rows else tiled).forward(out, value_bias, scale)
    return out.results


def forward_fake(
    x: Tensor | None, q: Tensor, k: Tensor | None, v: Tensor | None, shortcut: Tensor | None, *others: Any
) -> Results:
    """Room for the same."""
    return output(x, q, k, v, shortcut, others[-1]).results


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    kept: Kept,
    scale: float,
    value_width: int,
    channels_last: bool,
    needs: Needs,
) -> Results:
    """The gradient behind ReLU's mask (with bits), and those of q (or of all three in one), k and v.

    None stands for those that are not needed.
    """
    given = problem(q, k, v, value_width, channels_last)
    room = gradients(given, grad, q, k is None, kept.bits is not None, needs)
    if grad.dim() == 4:
        grad, _ = served(grad, channels_last)
    rows = laid_out(map_rows(grad), channels_last)
    if not given.keeps_rows:
        tiled.backward(given, room, rows, *kept, scale)
        return room.results
    if room.masked is not None:
        tiled.mask_and_delta(given, None, room.masked, rows, None, kept.bits)
        rows = map_rows(room.masked)
    if kept.kept is not None:
        whole.backward(given, room, rows, kept.kept, scale)
    return room.results


def backward_fake(grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, kept: Kept, *others: Any) -> Results:
    """Room for the same."""
    _, value_width, channels_last, needs = others
    given = problem(q, k, v, value_width, channels_last)
    return gradients(given, grad, q, k is None, kept.bits is not None, needs).results


def bias_bwd(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of a bias that is added behind the attention, the sum over all positions of a map's ``(C,)``.

    One reduction of the library's, which reads grad again. The kernel of delta could leave sums of its rows, but they
    would be many, and rounded to 16 bits in a launch more; and small maps without a shortcut have no such kernel.
    """
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, dtype)).to(dtype)


class _NonLocal(Op):
    """Of x the backward wants nothing, and where there is none y is what was attended."""

    def save(self, ctx: Any, arguments: Sequence[Any], y: Tensor | None, kept: Results) -> None:
        x, q, k, v, shortcut, key_bias, value_bias, ctx.scale = arguments
        ctx.op, ctx.constants = self, arguments[self.tensors :]
        attended, norms, bits = kept
        if attended is None and norms is not None:
            attended = y
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (x, shortcut, key_bias, value_bias))
        ctx.key_width = 0 if key_bias is None else key_bias.shape[0]
        if x is None:
            ctx.value_width, ctx.channels_last = v.shape[2], problem(q, k, v, 0, None).channels_last
        else:
            ctx.value_width, ctx.channels_last = x.shape[1], served(x)[1]
        keep(ctx, q, k, v, attended, norms, bits)

    def differentiate(self, ctx: Any, grad: Tensor | None, needs: Sequence[bool]) -> Results:
        needs_x, *needs_rows, needs_shortcut, needs_key_bias, needs_value_bias = needs
        if grad is None or not any(needs):
            return (None,) * 7
        saved = as_kept(ctx)
        dtype_x, dtype_shortcut, dtype_key_bias, dtype_value_bias = ctx.dtypes
        if torch.is_grad_enabled():  # so create_graph is True
            *rows, _, _, bits = saved
            masked = grad if bits is None else torch.where(self.mask(bits, grad, ctx.channels_last), grad, 0.0)
            constants = ctx.scale, ctx.value_width
            grads: Results = gradients_of(self.formula, rows, constants, map_rows(masked), needs_rows)
        else:
            if grad.dim() == 4:
                # In the layout of x here already: the residual's gradient is this one too.
                grad = served(grad, ctx.channels_last)[0]
            masked, grads = grad, [None] * 3
            if any(needs_rows) or dtype_shortcut is not None:
                found = self.backward(grad, *saved, ctx.scale, ctx.value_width, ctx.channels_last, *needs_rows)
                # Without ReLU the residual's gradient is that of the output.
                masked, grads = grad if found[0] is None else found[0], found[1:]
        asked = (each if needed else None for each, needed in zip(grads, needs_rows, strict=True))
        return (
            masked.to(dtype_x) if needs_x else None,
            *asked,
            masked.to(dtype_shortcut) if needs_shortcut else None,
            # Exactly zero, and there: None would be a parameter that nothing uses.
            grad.new_zeros(ctx.key_width, dtype=dtype_key_bias) if needs_key_bias else None,
            bias_bwd(masked, dtype_value_bias) if needs_value_bias else None,
        )


def mask_of(bits: Tensor, grad: Tensor, channels_last: bool) -> Tensor:
    """ReLU's mask, of a map like ``grad``."""
    inner = grad.shape[1] if channels_last else grad.shape[2] * grad.shape[3]
    flags = unpacked(bits)[..., :inner]
    return (flags.transpose(1, 2) if channels_last else flags).reshape(grad.shape)


def _formula(q: Tensor, k: Tensor | None, v: Tensor | None, scale: float, value_width: int) -> Tensor:
    """What is attended, the matrix in memory."""
    if k is None or v is None:
        q, k, v = q.split(split_sizes(q, value_width), dim=2)
    return plain.attend_explicit(q, k, v, scale)


NON_LOCAL = _NonLocal(
    Launcher("non_local", forward, forward_fake, 4),
    Launcher("non_local_backward", backward, backward_fake, 4),
    tensors=7,
    formula=_formula,
    mask=mask_of,
)
