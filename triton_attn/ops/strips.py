"""Gates of rows and of columns, by a network of anybody's that PyTorch runs between the squeeze and the apply.

Passes over the map: 3 forward (both means in one) and 4 backward; a shortcut adds one each, and a mask of one bit per
element. Beside them are vectors of a value for every row or column and channel: of those the means are written, and
backward their gradients and the gates' are. The gates themselves need not be: where the network's last layer is given
(:class:`Layer`), every pass makes its own of the few hidden units. The two steps are linked (:mod:`.linked`).

With a batch norm in front (:mod:`.normed_strips`) the map between it and the gates is never written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.batch_norm import BatchNorm
from ..reference.channel_gate import activate
from ..tuning import strip_rules
from . import normed_strips
from .batch_norm import NO_NORM, Norm, Normalised
from .layout import served
from .library import as_kept, keep
from .linked import Link, is_wider, unchanged, wants_gradient
from .normed_gate import taken_in
from .shortcut import added, in_one
from .strip_passes import APPLY, APPLY_BWD, NO_LAYER, POOL, SUMS_BWD, mask_of

Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Layer(NamedTuple):
    """What makes gates of hidden units: ``act(weight · units + bias)``, of rows and of columns.

    Weights ``(C, m)`` or ``(C, m, 1, 1)``, biases ``(C,)`` or None, ``activation`` one of the reference's ``GATES``.
    """

    row_weight: Tensor
    row_bias: Tensor | None
    column_weight: Tensor
    column_bias: Tensor | None
    activation: str


def gate_rows_and_columns(
    x: Tensor,
    network: Network,
    shortcut: Tensor | None = None,
    layer: Layer | None = None,
    norm: BatchNorm | None = None,
) -> Tensor:
    """``x · rows · columns`` with ``rows, columns = network(mean_w x, mean_h x)``, or ``relu(… + shortcut)``.

    ``network`` takes the means ``(N, C, H, 1)`` and ``(N, C, 1, W)`` in the dtype of ``x``, and returns gates of these
    shapes, or hidden units ``(N, m, H, 1)`` and ``(N, m, 1, W)`` that a ``layer`` makes gates of. With a ``norm``,
    which has no activation, that is of ``norm(x)``; its running statistics are changed in training. Not for
    compilation, where nothing can call the network from within an op.
    """
    link, last, front = Link(), in_one(x, shortcut), NO_NORM
    if norm is not None:
        u, after, of_rows, of_columns, front = normed_strips.pool(link, x, norm, last)
        taken_in(norm, (x, *front[:2]))
    elif wants_gradient(x, last):
        u, after, of_rows, of_columns = _Pool.apply(link, x, last)
    else:
        u, after, (of_rows, of_columns) = x, last, POOL(x)
    gates, given = network(of_rows, of_columns), NO_LAYER
    if layer is not None and _is_for_kernels(x, gates[0], layer):
        rows, columns = (each.flatten(2).transpose(1, 2).contiguous() for each in gates)
        gates, given = (rows, columns), layer
    elif layer is not None:
        gates = _by_layer(*gates, *layer)
    if any(is_wider(gate, x) for gate in gates):
        y = (x if norm is None else Normalised.apply(u, front)) * gates[0] * gates[1]
        return y if shortcut is None else torch.relu(y + shortcut)
    if wants_gradient(u, *gates, *given[:4]):
        y = _Multiply.apply(link, front, u, *gates, after, *given)
    else:
        found: Any = APPLY(u, *gates, *given, *front, after, False)
        y = found[0]
    return added(y, shortcut, last)


def _is_for_kernels(x: Tensor, units: Tensor, layer: Layer) -> bool:
    """Whether the passes make the gates of these units."""
    _, _, height, width = x.shape
    tensors = units, *(each for each in layer[:4] if each is not None)
    return (
        strip_rules.makes_gates(units.shape[1], height, width, served(x)[1])
        and (layer.row_bias is None) == (layer.column_bias is None)
        and all(each.dtype == x.dtype for each in tensors)
    )


def _by_layer(rows: Tensor, columns: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    """The gates by PyTorch, of units ``(N, m, H, 1)`` and ``(N, m, 1, W)``."""
    row_weight, row_bias, column_weight, column_bias, activation = layer
    parts = (rows, row_weight, row_bias), (columns, column_weight, column_bias)
    of_rows, of_columns = (activate(torch.conv2d(z, w.view(*w.shape[:2], 1, 1), b), activation) for z, w, b in parts)
    return of_rows, of_columns


def _gates(rows: Tensor, columns: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    """The gates by PyTorch, of what the kernels take: gates, or units ``(N, H, m)`` and ``(N, W, m)``."""
    if layer[0] is None:
        return rows, columns
    return _by_layer(rows.transpose(1, 2).unsqueeze(3), columns.transpose(1, 2).unsqueeze(2), *layer)


def _layer_bwd(dlogits: Tensor, units: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Any]:
    """The gradients of units ``(N, L, m)``, weight and bias."""
    rows = dlogits.flatten(2).transpose(1, 2)
    dweight = rows.flatten(0, 1).t() @ units.flatten(0, 1)
    dbias = None if bias is None else rows.sum((0, 1))
    return rows @ weight.flatten(1), dweight.view_as(weight), dbias


class _Pool(torch.autograd.Function):
    """The means; the map and the shortcut as they are, for :class:`_Multiply` alone."""

    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, shortcut: Tensor | None) -> Any:
        of_rows, of_columns = POOL(x)
        ctx.link, ctx.size, ctx.channels_last = link, x.shape, served(x)[1]
        ctx.set_materialize_grads(False)
        return *unchanged(x, shortcut), of_rows, of_columns

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, dshortcut: Tensor | None, drows: Tensor | None, dcolumns: Tensor | None
    ) -> Any:
        deferred = ctx.link.take()
        if grad is not None and deferred is not None and drows is not None and dcolumns is not None:
            gates, layer, bits, _ = deferred
            dx, dshortcut = APPLY_BWD(grad, *gates, *layer, bits, drows, dcolumns, ctx.channels_last)
            return None, dx, dshortcut
        if grad is not None and deferred is not None:  # a network that does not look at one of the means
            gates, layer, bits, _ = deferred
            grad, dshortcut = _multiply_bwd(served(grad, ctx.channels_last)[0], *_gates(*gates, *layer), bits)
        for part, length in ((drows, ctx.size[3]), (dcolumns, ctx.size[2])):
            if part is not None:
                own = (part / length).expand(ctx.size)
                grad = own if grad is None else (grad + own).to(grad.dtype)
        return None, grad, dshortcut


class _Multiply(torch.autograd.Function):
    """``x · rows · columns``, or with the shortcut, whose gradient of x is y's until what pooled finishes it.

    With a norm that is the normalised map's.
    """

    @staticmethod
    def forward(
        ctx: Any, link: Link, norm: Any, x: Tensor, rows: Tensor, columns: Tensor, shortcut: Tensor | None, *layer: Any
    ) -> Any:
        y, bits = APPLY(x, rows, columns, *layer, *norm, shortcut, True)
        ctx.link, ctx.activation, ctx.norm = link, layer[4], norm[4:]
        keep(ctx, x, rows, columns, bits, *layer[:4], *norm[:4])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, rows, columns, bits, *others = as_kept(ctx)
        layer, norm = others[:4], (*others[4:], *ctx.norm)
        has_norm, needs = norm[0] is not None, ctx.needs_input_grad
        needs_gates, needs_map, needs_shortcut = needs[3] or needs[4] or any(needs[6:]), needs[2], needs[5]
        if ctx.link.is_differentiated_again():
            x = Normalised.apply(x, Norm(*norm)) if has_norm else x
            grad = grad if bits is None else torch.where(mask_of(bits, x), grad, 0.0)
            with torch.enable_grad():
                row_gate, column_gate = gates = _gates(rows, columns, *layer, ctx.activation)
            moved = (grad * x).float() if x.itemsize < 4 else grad * x
            drow = (moved * column_gate).sum(3, keepdim=True).to(row_gate.dtype)
            dcolumn = (moved * row_gate).sum(2, keepdim=True).to(column_gate.dtype)
            dx = (grad * row_gate * column_gate).to(x.dtype) if needs_map else None
            dgates: list[Any] = [drow, dcolumn, *(None,) * 4]
            if layer[0] is not None and needs_gates:
                inputs = [rows, columns, *layer]
                wanted = [i for i, each in enumerate(inputs) if each is not None and each.requires_grad]
                found = torch.autograd.grad(gates, [inputs[i] for i in wanted], (drow, dcolumn), create_graph=True)
                dgates = [None] * 6
                for i, each in zip(wanted, found, strict=True):
                    dgates[i] = each
            return None, None, dx, *dgates[:2], grad if needs_shortcut else None, *dgates[2:], None
        dgates, of_norm = [None] * 6, None
        if needs_gates or has_norm:
            drow, dcolumn, *of_norm = SUMS_BWD(grad, x, rows, columns, *layer, ctx.activation, *norm, bits)
        if needs_gates:
            dgates[:2] = drow, dcolumn.to(columns.dtype)
            if layer[0] is not None:
                dgates[0], *dgates[2:4] = _layer_bwd(dgates[0], rows, *layer[:2])
                dgates[1], *dgates[4:] = _layer_bwd(dgates[1], columns, *layer[2:])
        ctx.link.deferred = (rows, columns), (*layer, ctx.activation), bits, of_norm
        return None, None, grad if needs_map or needs_shortcut else None, *dgates[:2], None, *dgates[2:], None


def _multiply_bwd(
    grad: Tensor, row_gate: Tensor, column_gate: Tensor, bits: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the map and of the shortcut, by PyTorch."""
    masked = grad if bits is None else torch.where(mask_of(bits, grad), grad, 0.0)
    return (masked * row_gate * column_gate).to(grad.dtype), None if bits is None else masked
