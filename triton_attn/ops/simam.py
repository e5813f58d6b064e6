"""SimAM as one op: ``x · (1 + gamma (σ(d / (4 (Σ_hw d / (HW − 1) + e_lambda)) + ½) − 1))``, ``d = (x − mean_hw x)²``.

``gamma`` is ``(1,)``, or None for 1. Passes over the map: 3 forward and 5 backward; a shortcut adds one each, and a bit
per element.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..reference.published.simam import simam as plain
from .layout import in_layout, served, served_both
from .library import Launcher, Op, Results, new_like
from .masks import mask
from .partial_sums import partial_sums
from .passes import multiply, multiply_bwd, multiply_fake, room_bwd, sums
from .spans import empty_parts, moments, spans_of, start


class Kept(NamedTuple):
    """What the backward needs: the moments, in parts, and the bits of ReLU's mask."""

    mean: Tensor
    square: Tensor
    bits: Tensor | None


def forward(x: Tensor, gamma: Tensor | None, shortcut: Tensor | None, e_lambda: float, saves: bool) -> Results:
    """The output, and what is kept."""
    from ..kernels.simam import simam_fwd_kernel

    x, channels_last = served(x)
    mean, square = moments(x, channels_last)
    y, bits = multiply(
        start,
        simam_fwd_kernel,
        x,
        channels_last,
        in_layout(shortcut, channels_last),
        saves,
        spans=spans_of(x),
        mean_ptr=mean,
        square_ptr=square,
        gamma_ptr=gamma,
        LAMBDA=e_lambda,
        HAS_GAMMA=gamma is not None,
    )
    return (y, *Kept(mean, square, bits)) if saves else (y,)


def _forward_fake(x: Tensor, gamma: Tensor | None, shortcut: Tensor | None, e_lambda: float, saves: bool) -> Results:
    y, bits = multiply_fake(x, shortcut, saves)
    return (y, *Kept(empty_parts(x), empty_parts(x), bits)) if saves else (y,)


def backward(
    grad: Tensor, x: Tensor, gamma: Tensor | None, kept: Kept, e_lambda: float, needs_map: bool, needs_gamma: bool
) -> Results:
    """The gradients of x, of gamma and of the shortcut; None for those that are not needed, or not there."""
    from ..kernels.simam import simam_bwd_kernel, simam_sums_kernel

    grad, x, channels_last = served_both(grad, x)
    first, second = (empty_parts(x) for _ in range(2))
    needs_gamma = needs_gamma and gamma is not None
    thirds = empty_parts(x) if needs_gamma else None
    given = {
        "mean_ptr": kept.mean,
        "square_ptr": kept.square,
        "first_ptr": first,
        "second_ptr": second,
        "gamma_ptr": gamma,
        "spans": spans_of(x),
        "LAMBDA": e_lambda,
        "HAS_GAMMA": gamma is not None,
    }
    of_gamma = {"dgamma_ptr": thirds, "NEEDS_GAMMA": needs_gamma}
    sums(start, simam_sums_kernel, grad, x, channels_last, kept.bits, **of_gamma, **given)
    dgamma = partial_sums(thirds.view(-1, 1), gamma.dtype) if thirds is not None and gamma is not None else None
    if not needs_map:
        return None, dgamma, None
    dx, dshortcut = multiply_bwd(start, simam_bwd_kernel, grad, x, channels_last, kept.bits, True, **given)
    return dx, dgamma, dshortcut


def _backward_fake(
    grad: Tensor, x: Tensor, gamma: Tensor | None, kept: Kept, e_lambda: float, needs_map: bool, needs_gamma: bool
) -> Results:
    dx, dshortcut = room_bwd(*served(x), kept.bits, needs_map)
    return dx, *new_like(gamma, needed=needs_gamma), dshortcut


def _formula(x: Tensor, gamma: Tensor | None, e_lambda: float) -> Tensor:
    return plain(x, gamma, e_lambda=e_lambda)


SIMAM = Op(
    Launcher("simam", forward, _forward_fake, 4),
    Launcher("simam_backward", backward, _backward_fake, 3),
    tensors=3,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[2], needs[1]),
    mask=mask,
)
