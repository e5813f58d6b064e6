"""Non-local attention by whole rows, on small maps: the softmax is kept, and the backward is four library products."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tuning import attention_rules, rules
from . import launch
from .non_local_problem import Gradients, Output, Problem, in_units


def forward(out: Output, bias: Tensor | None, scale: float) -> None:
    """The output, and the softmax for a backward."""
    from ..kernels.non_local_whole import non_local_whole_fwd_kernel

    given = out.given
    d, dv, length, source = given.sizes
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
    config = attention_rules.softmax_bwd(pitch)
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
