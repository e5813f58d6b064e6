"""Non-local attention tile by tile: no score is ever in memory, and what is kept is linear in the positions."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend
from ..tuning import attention_rules, rules
from . import launch
from .non_local_problem import Gradients, Output, Problem, in_units, map_rows


def forward(out: Output, bias: Tensor | None, scale: float) -> None:
    """The output; for a backward what was attended, and the norms of every row."""
    from ..kernels.non_local_fwd import non_local_fwd_kernel

    given = out.given
    _, dv, length, _ = given.sizes
    launch.tuned(
        non_local_fwd_kernel,
        lambda config: (out.y.shape[0] * rules.cdiv(length, config["BLOCK_M"]) * rules.cdiv(dv, config["BLOCK_V"]),),
        given.shape,
        attention_rules.forward(*given.factors),
        out.y.device,
        o_ptr=out.kept,
        norms_ptr=out.norms,
        SAVES=out.norms is not None,
        **out.arguments(bias, scale),
        **in_units(given, o=out.kept, **out.maps),
    )


def backward(
    given: Problem,
    room: Gradients,
    grad: Tensor,
    o: Tensor | None,
    norms: Tensor | None,
    bits: Tensor | None,
    scale: float,
) -> None:
    """All gradients, of y's as rows; ``delta = Σ grad · o``, or where sums are counted again with them."""
    delta = None
    if room.q is not None or room.k is not None:
        delta = torch.empty((grad.shape[0], grad.shape[1]), dtype=torch.float32, device=grad.device)
    kept_delta = None if given.counts_again else delta
    if kept_delta is not None or room.masked is not None:
        mask_and_delta(given, kept_delta, room.masked, grad, o, bits)
    if room.masked is not None:
        grad = map_rows(room.masked)
    if given.counts_again and (delta is not None or room.v is not None):
        norms = torch.empty((grad.shape[0], 2, grad.shape[1]), dtype=torch.float32, device=grad.device)
        rows_bwd(given, norms, delta, grad, scale)
    products_bwd(given, room, grad, norms, delta, scale)


def mask_and_delta(
    given: Problem, delta: Tensor | None, masked: Tensor | None, grad: Tensor, o: Tensor | None, bits: Tensor | None
) -> None:
    """``delta = Σ_c grad · o``, and grad behind ReLU's mask; each where there is room for it."""
    from ..kernels.non_local_bwd import non_local_delta_kernel

    _, dv, length, _ = given.sizes
    o = None if delta is None else o
    arguments = in_units(given, m=map_rows(masked), g=grad, o=o)
    del arguments["width"], arguments["source"]
    launch.tuned(
        non_local_delta_kernel,
        lambda config: (grad.shape[0] * rules.cdiv(length, config["BLOCK_M"]),),
        given.shape,
        attention_rules.delta(length, dv, given.channels_last),
        grad.device,
        delta_ptr=delta,
        masked_ptr=masked,
        grad_ptr=grad,
        o_ptr=o,
        bits_ptr=None if masked is None else bits,
        HAS_DELTA=delta is not None,
        HAS_BITS=masked is not None,
        CHANNELS_LAST=given.channels_last,
        **arguments,
    )


def rows_bwd(given: Problem, norms: Tensor, delta: Tensor | None, grad: Tensor, scale: float) -> None:
    """The norms of every row, and delta where there is room for it, of the scores as the backward has them."""
    from ..kernels.non_local_rows import non_local_rows_bwd_kernel

    length = given.q.shape[1]
    launch.tuned(
        non_local_rows_bwd_kernel,
        lambda config: (grad.shape[0] * rules.cdiv(length, config["BLOCK_M"]),),
        given.shape,
        attention_rules.rows_bwd(*given.factors),
        grad.device,
        norms_ptr=norms,
        delta_ptr=delta,
        grad_ptr=grad,
        HAS_DELTA=delta is not None,
        **given.arguments(scale),
        **in_units(given, g=grad, **given.read),
    )


def products_bwd(
    given: Problem, room: Gradients, grad: Tensor, norms: Tensor | None, delta: Tensor | None, scale: float
) -> None:
    """The gradients of k and v, block of keys by block of keys, and of q, block of queries by block of queries."""
    from ..kernels.non_local_bwd import non_local_keys_bwd_kernel, non_local_queries_bwd_kernel

    width, value_width, length, source = given.sizes
    common = {
        "grad_ptr": grad,
        "norms_ptr": norms,
        "delta_ptr": delta,
        "dscale": scale,
        **given.arguments(scale),
    }
    launches = [(room.k, room.v)] if attention_rules.together(*given.factors[:4]) else [(None, room.v), (room.k, None)]
    for dk, dv in launches:
        if dk is None and dv is None:
            continue
        rule = attention_rules.keys_bwd(*given.factors, dk is not None, dv is not None)
        slices = rules.cdiv(value_width, rule["SLICE_V"]) if dk is None else rules.cdiv(width, rule["SLICE_D"])
        launch.tuned(
            non_local_keys_bwd_kernel,
            _keys_grid(grad.shape[0] * slices, source),
            given.shape,
            rule,
            grad.device,
            dk_ptr=dk,
            dv_ptr=dv,
            NEEDS_K=dk is not None,
            NEEDS_V=dv is not None,
            **in_units(given, dk=dk, dv=dv, g=grad, **given.read),
            **common,
        )
    if room.q is not None:
        # A tensor core rounds q · k as k · q, all but the last bit of a few in three passes. NumPy does not.
        as_keys = given.counts_again and backend.interpreting()
        launch.tuned(
            non_local_queries_bwd_kernel,
            lambda config: (
                grad.shape[0] * rules.cdiv(width, config["SLICE_D"]) * rules.cdiv(length, config["BLOCK_M"]),
            ),
            given.shape,
            attention_rules.queries_bwd(*given.factors, as_keys),
            grad.device,
            dq_ptr=room.q,
            AS_KEYS=as_keys,
            **in_units(given, dq=room.q, g=grad, **given.read),
            **common,
        )


def _keys_grid(times: int, source: int) -> launch.Grid:
    """Programs for every block of keys, so many ``times``."""
    return lambda config: (times * rules.cdiv(source, config["BLOCK_N"]),)
