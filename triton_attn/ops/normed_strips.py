"""A batch norm in front of gates of rows and columns: what the gate network gets, and the gradients of norm and map.

One read of x gives the batch's statistics and the means of its rows and columns, whose batch norm is what the network
gets. Passes over the map in training: 3 forward and 5 backward, 3 and 4 with running statistics; a shortcut adds one
each. For autograd the step that pools hands on the normalised map, of which there are x's values alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..reference.batch_norm import BatchNorm, tensors_of
from ..tuning import rules, strip_rules
from . import batch_norm, launch
from .batch_norm import Norm, NormTensors, by_pytorch, empty_statistics, told_of
from .layout import served, served_both
from .library import Launcher, Results, as_kept, new_like
from .linked import Link, begin, by_formula, unchanged, wants_gradient
from .passes import room_bwd
from .strip_passes import Gates, Parts, apply_bwd, empty_parts, empty_seen, in_order, sums


class Pool(torch.autograd.Function):
    """The means of the normalised map; that map and the shortcut, for the multiply alone; and the batch's statistics.

    The map is x as it is: who computes with it normalises it (:class:`.Normalised`).
    """

    @staticmethod
    def forward(ctx: Any, link: Link, given: tuple[bool, float], x: Tensor, *tensors: Tensor | None) -> Any:
        *of_norm, shortcut = tensors
        of_rows, of_columns, row_parts, column_parts, *statistics = POOL(x, *of_norm, *given)
        ctx.given = given
        ctx.mark_non_differentiable(*(each for each in statistics if each is not None))
        begin(ctx, link, x, *of_norm, *statistics, row_parts, column_parts)
        return *unchanged(x, shortcut), of_rows, of_columns, *statistics

    @staticmethod
    def backward(
        ctx: Any,
        grad: Tensor | None,
        dshortcut: Tensor | None,
        drows: Tensor | None,
        dcolumns: Tensor | None,
        *_: None,
    ) -> Any:
        x, *of_norm, mean, variance, row_parts, column_parts = as_kept(ctx)
        deferred = ctx.link.take()
        if grad is None or deferred is None:
            of_pooled = partial(_pooled, of_norm[2:], ctx.given)
            own = by_formula(of_pooled, (grad, drows, dcolumns), x, *of_norm[:2])
            return None, None, *own, None, None, dshortcut
        gates, layer, bits, of_blocks = deferred
        drows, dcolumns = (
            x.new_zeros(size) if each is None else each
            for each, size in ((drows, (*x.shape[:3], 1)), (dcolumns, (*x.shape[:2], 1, x.shape[3])))
        )
        needs = ctx.needs_input_grad
        wanted = needs[2] or needs[7], needs[3] or needs[4]
        tensors = *of_norm, mean, variance, row_parts, column_parts
        dx, dshortcut, *dnorm = BWD(
            grad, x, *gates, *layer, *tensors, bits, *of_blocks, drows, dcolumns, *ctx.given, *wanted
        )
        return None, None, dx, *dnorm, None, None, dshortcut


def _pooled(running: Results, given: tuple[bool, float], x: Tensor, *affine: Tensor | None) -> tuple[Tensor, ...]:
    """The normalised map and its means, by PyTorch."""
    v = by_pytorch(running, given, x, *affine)
    return v, v.mean(3, keepdim=True), v.mean(2, keepdim=True)


def pool(link: Link, x: Tensor, norm: BatchNorm, shortcut: Tensor | None) -> Any:
    """The map and the shortcut for the multiply, the means, and the norm as the multiply takes it."""
    given, tensors = (norm.training, norm.eps), tensors_of(norm)
    if wants_gradient(x, norm.weight, norm.bias, shortcut):
        u, after, of_rows, of_columns, *statistics = Pool.apply(link, given, x, *tensors, shortcut)
    else:
        of_rows, of_columns, _, _, *statistics = POOL(x, *tensors, *given)
        u, after = x, shortcut
    return u, after, of_rows, of_columns, NormTensors(*tensors).norm(statistics, *given)


def _pool(x: Tensor, tensors: NormTensors, training: bool, eps: float) -> Results:
    """Means of the normalised map's rows and columns; x's in parts; and in training the batch's statistics."""
    from ..kernels.normed_strips import normed_strips_kernel

    x, channels_last = served(x)
    batch, channels, height, width = x.shape
    found = sums(x, channels_last, dtype=torch.float32, blocks=training)
    statistics = empty_statistics(x, training)
    norm = tensors.norm(statistics, training, eps)
    if found.part is not None and found.moment is not None:
        config = strip_rules.strips(channels, height, width, channels_last)
        sizes = {"width": width, "SPAN": config["CHUNK"], "BLOCK_W": config["BLOCK_W"]}
        batch_norm.statistics(x, norm, found.part, found.moment, sizes)
    rows, columns = empty_seen(x, channels_last)
    config = strip_rules.normed_strips(channels, height, width, channels_last)
    strips = rules.cdiv(height, config["BLOCK_L"]) + rules.cdiv(width, config["BLOCK_L"])
    launch.start(
        normed_strips_kernel,
        (batch * strips * rules.cdiv(channels, config["BLOCK_C"]),),
        x.device,
        rows_ptr=rows,
        columns_ptr=columns,
        **_parts(found.rows, found.columns),
        **_sizes(x),
        **told_of(norm, x),
        CHANNELS_LAST=channels_last,
        **config,
    )
    return rows, columns, found.rows, found.columns, *statistics


def _parts(row_parts: Tensor, column_parts: Tensor) -> dict[str, Any]:
    pointers = {"row_parts_ptr": row_parts, "column_parts_ptr": column_parts}
    return pointers | {"row_parts": row_parts.shape[1], "column_parts": column_parts.shape[1]}


def _sizes(x: Tensor) -> dict[str, int]:
    return {"channels": x.shape[1], "height": x.shape[2], "width": x.shape[3]}


def _pool_fake(x: Tensor, tensors: NormTensors, training: bool, eps: float) -> Results:
    x, channels_last = served(x)
    found = empty_parts(x, channels_last, torch.float32)
    return *empty_seen(x, channels_last), found.rows, found.columns, *empty_statistics(x, training)


def _bwd(
    grad: Tensor,
    x: Tensor,
    gates: Gates,
    tensors: NormTensors,
    mean: Tensor | None,
    variance: Tensor | None,
    row_parts: Tensor,
    column_parts: Tensor,
    bits: Tensor | None,
    part: Tensor,
    moment: Tensor,
    drows: Tensor,
    dcolumns: Tensor,
    training: bool,
    eps: float,
    needs_map: bool,
    needs_norm: bool,
) -> Results:
    """The gradients of x and of the shortcut, and of the norm's weight and bias; None where not needed.

    ``part`` and ``moment`` are the sums of the normalised map's gradient by way of the multiply.
    """
    grad, x, channels_last = served_both(grad, x)
    norm = tensors.norm((mean, variance), training, eps)
    by = dx = dshortcut = None
    if needs_norm or (needs_map and training):
        found = Parts(row_parts, column_parts, part, moment)
        whole = _sums_of_norm(x, norm, found, drows, dcolumns, channels_last)
        by = batch_norm.parameters_bwd(whole, x, norm, None, None, None, needs=needs_norm)
    if needs_map:
        read = x if training else None
        dx, dshortcut = apply_bwd(grad, read, gates, bits, drows, dcolumns, channels_last, norm, by)
    return dx, dshortcut, *((None, None) if by is None else (by.weight, by.bias))


def _sums_of_norm(
    x: Tensor, norm: Norm, found: Parts, drows: Tensor, dcolumns: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """Of the normalised map's gradient, by the multiply and by the means, ``Σ dv`` and ``Σ dv · (x - mean)``."""
    from ..kernels.normed_strips import normed_strips_bwd_kernel

    batch, channels, height, width = x.shape
    assert found.part is not None
    gradient, moment = (x.new_empty((batch, 1, channels), dtype=torch.float32) for _ in range(2))
    config = strip_rules.normed_strips(channels, height, width, channels_last)
    launch.start(
        normed_strips_bwd_kernel,
        (batch * rules.cdiv(channels, config["BLOCK_C"]),),
        x.device,
        gradient_ptr=gradient,
        moment_ptr=moment,
        gradient_parts_ptr=found.part,
        moment_parts_ptr=found.moment,
        drow_ptr=in_order(drows, channels_last),
        dcolumn_ptr=in_order(dcolumns, channels_last),
        mean_ptr=norm.mean,
        parts=found.part.shape[1],
        **_parts(found.rows, found.columns),
        **_sizes(x),
        CHANNELS_LAST=channels_last,
        **config,
    )
    return gradient, moment


def _bwd_fake(grad: Tensor, x: Tensor, gates: Gates, tensors: NormTensors, *others: Any) -> Results:
    bits, (needs_map, needs_norm) = others[4], others[-2:]
    of_norm = new_like(tensors.norm_weight, tensors.norm_bias, needed=needs_norm)
    return *room_bwd(*served(x), bits, needs_map), *of_norm


POOL = Launcher("pool_rows_and_columns_behind_norm", _pool, _pool_fake, 6)
BWD = Launcher("gate_rows_and_columns_behind_norm_backward", _bwd, _bwd_fake, 4)
