"""Non-local attention by whole rows, on small maps: the softmax is kept, and the backward is four library products.

Rows of up to 256 keys are one kernel's; longer ones are made by two products of the library's, a softmax between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tuning import attention_rules, rules
from . import launch
from .non_local_problem import LOG2_E, Gradients, Output, Problem, empty_rows, in_units


def forward(out: Output, bias: Tensor | None, scale: float) -> None:
    """The output, and the softmax for a backward."""
    from ..kernels.non_local_whole import non_local_whole_fwd_kernel

    given = out.given
    d, dv, length, source = given.sizes
    if given.by_library:
        _by_library(out, bias, scale)
        return
    launch.tuned(
        non_local_whole_fwd_kernel,
        lambda config: (out.y.shape[0] * rules.cdiv(length, config["BLOCK_M"]) * rules.cdiv(dv, config["SLICE"]),),
        given.shape,
        attention_rules.whole(d, dv, source, *given.factors[2:]),
        out.y.device,
        rows_ptr=out.kept,
        pitch=attention_rules.pitch(source),
        SAVES=out.kept is not None,
        **out.arguments(bias, scale),
        **in_units(given, **out.maps),
    )


def _by_library(out: Output, bias: Tensor | None, scale: float) -> None:
    from ..kernels.non_local_whole import non_local_tail_kernel

    given = out.given
    _, dv, length, source = given.sizes
    batch, rows, maps = out.y.shape[0], out.kept, out.maps
    if rows is None:
        shape = (batch, length, attention_rules.pitch(source))
        rows = torch.empty(shape, dtype=given.q.dtype, device=given.q.device)
    weight, v = rows[..., :source], given.v
    # With ``out=`` autocast leaves the factors as they are.
    torch.bmm(given.q, given.k.transpose(1, 2), out=weight)
    _softmax(rows, source, scale)
    y = maps["y"]
    assert y is not None
    if out.x is None:  # no bias, and no tail
        torch.bmm(weight, v, out=y)
        return
    bias = v.new_zeros(dv) if bias is None else bias
    attended = empty_rows(v, (batch, length, dv), v.dtype, given.channels_last)
    torch.bmm(weight, v, out=attended)
    config = attention_rules.tail(length, dv, given.channels_last)
    sizes = in_units(given, o=attended, **{name: t for name, t in maps.items() if name in ("y", "x", "s")})
    taken: tuple[str, ...] = ("HAS_SHORTCUT", "SAVE_BITS", "CHANNELS_LAST")
    taken += ("y_ptr", "bits_ptr", "x_ptr", "bias_ptr", "shortcut_ptr")
    launch.start(
        non_local_tail_kernel,
        (batch * rules.cdiv(length, config["BLOCK_M"]) * rules.cdiv(dv, config["BLOCK_V"]),),
        out.y.device,
        o_ptr=attended,
        **{name: value for name, value in out.arguments(bias, scale).items() if name in taken},
        **{name: value for name, value in sizes.items() if name not in ("width", "source")},
        **config,
    )


def _softmax(rows: Tensor, source: int, scale: float) -> None:
    """Of scores ``(N, L, pitch)``, in place."""
    from ..kernels.non_local_whole import softmax_fwd_kernel

    config, count = attention_rules.softmax(rows.shape[2]), rows.shape[0] * rows.shape[1]
    launch.start(
        softmax_fwd_kernel,
        (rules.cdiv(count, config["BLOCK_R"]),),
        rows.device,
        rows_ptr=rows,
        count=count,
        source=source,
        pitch=rows.shape[2],
        scale=abs(scale) * LOG2_E,
        NEGATIVE=scale < 0,
        **config,
    )


def backward(given: Problem, room: Gradients, grad: Tensor, softmax: Tensor, scale: float) -> None:
    """The gradients of q, k and v, of y's as rows, behind ReLU's mask."""
    from ..kernels.non_local_whole import softmax_bwd_kernel

    grad, source = grad.to(softmax.dtype), given.k.shape[1]
    # With ``out=`` autocast, if it is in force around a backward, leaves the factors as they are.
    if room.v is not None:
        torch.bmm(softmax[..., :source].transpose(1, 2), grad, out=room.v)
    if room.q is None and room.k is None:
        return
    padded = torch.empty_like(softmax)
    dscore = padded[..., :source]
    torch.bmm(grad, given.v.transpose(1, 2), out=dscore)
    batch, length, pitch = padded.shape
    config = attention_rules.softmax(pitch)
    launch.start(
        softmax_bwd_kernel,
        (rules.cdiv(batch * length, config["BLOCK_R"]),),
        grad.device,
        grad_ptr=padded,
        rows_ptr=softmax,
        count=batch * length,
        source=source,
        pitch=pitch,
        scale=scale,
        **config,
    )
    if room.q is not None:
        torch.bmm(dscore, given.k, out=room.q)
    if room.k is not None:
        torch.bmm(dscore.transpose(1, 2), given.q, out=room.k)
