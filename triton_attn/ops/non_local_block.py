"""The non-local block as one op: its projections, what they attend, and the residual, with a backward of its own.

Traced, a block is better its parts: PyTorch's compiler fuses what lies between products. Called eagerly, it is this:
autograd sees one step in place of some twenty, and the gradients of x are summed inside of the products that make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.non_local import attend_explicit
from .layout import served
from .library import Launcher, Op, Results
from .non_local import NON_LOCAL, mask_of, non_local
from .non_local_problem import map_rows
from .products import product_dtype, rows_of, sum_of

Weights = Sequence[Tensor]


def non_local_block(x: Tensor, weights: Weights, shortcut: Tensor | None = None) -> Tensor:
    """``x + attention``, or ``relu(x + attention + shortcut)``, of a map and the weights and biases of its projections.

    Args:
        x: the map, ``(N, C, H, W)``.
        weights: of the queries, the keys and the values, each a weight ``(channels, C, 1, 1)`` and a bias.
        shortcut: of ``x``'s shape.
    """
    x, channels_last = served(x)
    if torch.compiler.is_compiling() or not x.numel():
        q, k, v, _ = projected(x, weights, channels_last)
        return non_local(q, k, v, x=x, shortcut=shortcut, key_bias=weights[3], value_bias=weights[5])
    if shortcut is not None:
        if shortcut.dtype != torch.promote_types(x.dtype, product_dtype(x)):
            # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
            return torch.relu(NON_LOCAL_BLOCK(x, *weights, None) + shortcut)
        shortcut, _ = served(shortcut, channels_last)
    return NON_LOCAL_BLOCK(x, *weights, shortcut)


def is_one_product(x: Tensor, weights: Weights) -> bool:
    """Whether the weights are put side by side: then one product reads the map, and one sums its gradient.

    But they are put so each time. Counted, that costs more than it saves where they are larger than twice the map.
    """
    return sum(each.numel() for each in weights[::2]) <= 2 * x.numel()


Projected = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def projected(x: Tensor, weights: Weights, channels_last: bool) -> Projected:
    """q, k and v, ``(N, HW, channels)`` in the layout of ``x``, or all in one, and then their weights side by side.

    k and v come without their biases. What those do is known exactly: a bias of the keys shifts whole rows of scores,
    which changes no softmax, and one of the values comes out of it as it went in, since a softmax's rows sum to 1.
    """
    query, query_bias, key, _, value, _ = weights
    if is_one_product(x, weights):
        together = torch.cat([query, key, value])
        bias = torch.cat([query_bias, query_bias.new_zeros(len(together) - len(query_bias))])
        return projection(x, together, bias, channels_last), None, None, together
    return (
        projection(x, query, query_bias, channels_last),
        projection(x, key, None, channels_last),
        projection(x, value, None, channels_last),
        None,
    )


def projection(x: Tensor, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """A 1×1 convolution of ``x``, as ``(N, HW, channels)``."""
    if channels_last or not x.numel():
        # A plain product, (N·HW, C) × (C, channels): the rows are a view of the map.
        return torch.ops.aten.linear(map_rows(x), weight.flatten(1), bias)
    # Not a product for each image: that would make a weight's gradient for each image too, before it is summed.
    return map_rows(torch.conv2d(x, weight, bias))


def projected_into(x: Tensor, weights: Weights) -> Projected:
    """:func:`projected`, of a channels_last map, by operators that write into what they are given: plans call those."""
    query, query_bias, key, _, value, _ = weights
    rows, shape = rows_of(x), (x.shape[0], x.shape[2] * x.shape[3], -1)

    def product(weight: Tensor, bias: Tensor | None) -> Tensor:
        out = x.new_empty((len(rows), len(weight)))
        wide = weight.flatten(1).t()
        return (torch.mm(rows, wide, out=out) if bias is None else torch.addmm(bias, rows, wide, out=out)).view(shape)

    if is_one_product(x, weights):
        together = x.new_empty((len(query) + len(key) + len(value), *query.shape[1:]))
        bias = x.new_empty(len(together))
        torch.cat([query, key, value], out=together)
        bias[: len(query)].copy_(query_bias)
        bias[len(query) :].zero_()
        return product(together, bias), None, None, together
    return product(query, query_bias), product(key, None), product(value, None), None


def projection_bwd(
    grad: Tensor, x: Tensor, weight: Tensor, dx: Tensor | None, needs_weight: bool, channels_last: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``dx``, where there is one, and the gradient of a projection's map; and that of the weight."""
    x, wide = x.to(grad.dtype), weight.to(grad.dtype)
    if channels_last:
        rows, dweight = grad.flatten(0, 1), None
        if needs_weight:
            dweight = torch.empty_like(wide, memory_format=torch.contiguous_format)
            torch.mm(rows.t(), rows_of(x), out=dweight.flatten(1))
            dweight = dweight.to(weight.dtype)
        if dx is None:
            return None, dweight
        shape = x.shape[0], *x.shape[2:], x.shape[1]
        if dx.dtype != rows.dtype:
            return dx + (rows @ wide.flatten(1)).view(shape).permute(0, 3, 1, 2), dweight
        total = rows.new_empty((len(rows), x.shape[1]))
        torch.addmm(rows_of(dx), rows, wide.flatten(1), out=total)
        return total.view(shape).permute(0, 3, 1, 2), dweight
    grad_map = grad.transpose(1, 2).unflatten(2, x.shape[2:])
    one, none, wanted = [1, 1], [0, 0], (dx is not None, needs_weight, False)
    found, dweight, _ = torch.ops.aten.convolution_backward(
        grad_map, x, wide, None, one, none, one, False, none, 1, wanted
    )
    return None if dx is None else dx + found, dweight.to(weight.dtype) if needs_weight else None


class Projections(NamedTuple):
    """The weights and biases of a block's."""

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor


class Attended(NamedTuple):
    """What the backward needs: the projections, and what non-local attention keeps of them.

    Of projections in one product also their weights: to put these side by side again takes longer than a launch.
    """

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    together: Tensor | None
    kept: Tensor | None
    norms: Tensor | None
    bits: Tensor | None


class Needs(NamedTuple):
    """Which of the op's tensors want a gradient."""

    needs_x: bool
    needs_query: bool
    needs_query_bias: bool
    needs_key: bool
    needs_key_bias: bool
    needs_value: bool
    needs_value_bias: bool
    needs_shortcut: bool


def forward(x: Tensor, projections: Projections, shortcut: Tensor | None, saves: bool) -> Results:
    """The output, and what is kept."""
    x, channels_last = served(x)
    dtype = product_dtype(x)
    weights = [each.to(dtype) for each in projections]
    x_in = x.to(dtype)
    rows = projected_into(x_in, weights) if channels_last else projected(x_in, weights, False)
    y, *kept = NON_LOCAL.forward(x, *rows[:3], shortcut, None, weights[-1], 1.0, saves)
    return [y, *rows, *kept] if saves else [y]


def backward(grad: Tensor, x: Tensor, projections: Projections, attended: Attended, needs: Needs) -> Results:
    """The gradients of the op's tensors that ``needs`` says; of all three weights in one where they were put so."""
    query, query_bias, key, key_bias, value, value_bias = projections
    needs_x, needs_query, needs_query_bias, needs_key, needs_key_bias, needs_value, needs_value_bias, needs_shortcut = (
        needs
    )
    x, channels_last = served(x)
    grad = served(grad, channels_last)[0]
    of_rows = needs_x or needs_query or needs_query_bias, needs_x or needs_key, needs_x or needs_value
    q, k, v, together, *kept = attended
    masked, *rows = NON_LOCAL.backward(grad, q, k, v, *kept, 1.0, x.shape[1], channels_last, *of_rows)
    if masked is None:  # without ReLU the residual's gradient is that of the output
        masked = grad
    dx = masked if needs_x else None
    weights, needed = [query, key, value], [needs_query, needs_key, needs_value]
    if together is not None:
        weights, needed = [together], [any(needed)]
    dweights: list[Tensor | None] = [None] * 3
    for i, (of_row, weight, needs_weight) in enumerate(zip(rows, weights, needed, strict=False)):
        if of_row is not None:
            dx, dweights[i] = projection_bwd(of_row, x, weight, dx, needs_weight, channels_last)
    dquery, dkey, dvalue = (None if each is None else each.to(query.dtype) for each in dweights)
    return [
        None if dx is None else dx.to(x.dtype),
        dquery,
        None if rows[0] is None or not needs_query_bias else sum_of(rows[0][..., : len(query)], (0, 1), query_bias),
        dkey,
        # Exactly zero, and there: None would be a parameter that nothing uses.
        torch.empty_like(key_bias).zero_() if needs_key_bias else None,
        dvalue,
        sum_of(masked, (0, 2, 3), value_bias) if needs_value_bias else None,
        masked if needs_shortcut else None,
    ]


def gradients(found: Results, tensors: Sequence[Any]) -> Results:
    """:func:`backward`'s results, a gradient for each of the op's tensors."""
    dx, dquery, dquery_bias, dkey, dkey_bias, dvalue, *others = found
    _, query, _, key, _, value, _ = tensors
    if dquery is not None and len(dquery) > len(query):
        dquery, dkey, dvalue = dquery.split([len(query), len(key), len(value)])
    return [dx, dquery, dquery_bias, dkey, dkey_bias, dvalue, *others]


def formula(x: Tensor, *projections: Tensor) -> Tensor:
    """``x + attention``, the matrix in memory."""
    pairs = zip(projections[::2], projections[1::2], strict=True)
    q, k, v = (projection(x, weight, bias, True) for weight, bias in pairs)
    attended = attend_explicit(q, k, v)
    return x + attended.transpose(1, 2).reshape(x.shape)


NON_LOCAL_BLOCK = Op(
    Launcher("non_local_block", forward, forward, 8),
    Launcher("non_local_block_backward", backward, backward, 8),
    tensors=8,
    formula=formula,
    mask=lambda bits, x, *_: mask_of(bits, x, served(x)[1]),
    gradients=gradients,
)
