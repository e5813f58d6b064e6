"""SimAM as one op. Passes over the map: 3 forward and 5 backward; a shortcut adds one each, and a bit per element."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.published.simam import simam as plain
from . import gating
from .gating import empty_bits
from .layout import empty_map, served
from .library import Launcher, Op, Results
from .partial_sums import partial_sums
from .spans import empty_parts, moments, spans_of, start


def simam(x: Tensor, gamma: Tensor | None, shortcut: Tensor | None = None, *, e_lambda: float = 1e-4) -> Tensor:
    """``x · (1 + gamma (σ(d / (4 (Σ_hw d / (HW − 1) + e_lambda)) + ½) − 1))`` with ``d = (x − mean_hw x)²``.

    ``x`` ``(N, C, H, W)``, ``gamma`` ``(1,)`` or None for 1; with a shortcut ``relu(… + shortcut)``.
    """
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(simam(x, gamma, e_lambda=e_lambda) + shortcut)
    x, channels_last = served(x)
    shortcut = None if shortcut is None else served(shortcut, channels_last)[0]
    return SIMAM(x, gamma, shortcut, float(e_lambda))


def forward(x: Tensor, gamma: Tensor | None, shortcut: Tensor | None, e_lambda: float, saves: bool) -> Results:
    """The output; and for the backward the moments, in parts, and the bits of ReLU's mask."""
    from ..kernels.simam import simam_fwd_kernel

    x, channels_last = served(x)
    shortcut = None if shortcut is None else served(shortcut, channels_last)[0]
    mean, square = moments(x, channels_last)
    y = empty_map(x, channels_last)
    bits = empty_bits(x, channels_last) if saves and shortcut is not None else None
    start(
        simam_fwd_kernel,
        x,
        channels_last,
        {"y": y, "x": x, "s": shortcut},
        spans=spans_of(x),
        y_ptr=y,
        bits_ptr=bits,
        x_ptr=x,
        mean_ptr=mean,
        square_ptr=square,
        gamma_ptr=gamma,
        shortcut_ptr=shortcut,
        LAMBDA=e_lambda,
        HAS_GAMMA=gamma is not None,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_BITS=bits is not None,
    )
    return (y, mean, square, bits) if saves else (y, None, None, None)


def _forward_fake(x: Tensor, gamma: Tensor | None, shortcut: Tensor | None, e_lambda: float, saves: bool) -> Results:
    x, channels_last = served(x)
    parts = [empty_parts(x) if saves else None for _ in range(2)]
    bits = empty_bits(x, channels_last) if saves and shortcut is not None else None
    return empty_map(x, channels_last), *parts, bits


def backward(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    square: Tensor,
    bits: Tensor | None,
    e_lambda: float,
    needs_map: bool,
    needs_gamma: bool,
) -> Results:
    """The gradients of x, of gamma and of the shortcut; None for those that are not needed, or not there."""
    from ..kernels.simam import simam_bwd_kernel, simam_sums_kernel

    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    first, second = (empty_parts(x) for _ in range(2))
    needs_gamma = needs_gamma and gamma is not None
    thirds = empty_parts(x) if needs_gamma else None
    given = {"grad_ptr": grad, "x_ptr": x, "bits_ptr": bits, "mean_ptr": mean, "square_ptr": square}
    options = {"gamma_ptr": gamma, "LAMBDA": e_lambda, "HAS_GAMMA": gamma is not None}
    start(
        simam_sums_kernel,
        x,
        channels_last,
        {"g": grad, "x": x},
        spans=spans_of(x),
        first_ptr=first,
        second_ptr=second,
        dgamma_ptr=thirds,
        **given,
        **options,
        HAS_BITS=bits is not None,
        NEEDS_GAMMA=needs_gamma,
    )
    dgamma = partial_sums(thirds.view(-1, 1), gamma.dtype) if thirds is not None and gamma is not None else None
    if not needs_map:
        return None, dgamma, None
    dx = empty_map(x, channels_last)
    dshortcut = None if bits is None else empty_map(x, channels_last)
    start(
        simam_bwd_kernel,
        x,
        channels_last,
        {"d": dx, "s": dshortcut, "g": grad, "x": x},
        spans=spans_of(x),
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        **given,
        first_ptr=first,
        second_ptr=second,
        **options,
        HAS_SHORTCUT=bits is not None,
    )
    return dx, dgamma, dshortcut


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    square: Tensor,
    bits: Tensor | None,
    e_lambda: float,
    needs_map: bool,
    needs_gamma: bool,
) -> Results:
    x, channels_last = served(x)
    return (
        empty_map(x, channels_last) if needs_map else None,
        torch.empty_like(gamma) if needs_gamma and gamma is not None else None,
        empty_map(x, channels_last) if needs_map and bits is not None else None,
    )


def _formula(x: Tensor, gamma: Tensor | None, e_lambda: float) -> Tensor:
    return plain(x, gamma, e_lambda=e_lambda)


SIMAM = Op(
    Launcher(
        "simam(Tensor x, Tensor? gamma, Tensor? shortcut, float e_lambda, bool saves)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        "simam_backward(Tensor grad, Tensor x, Tensor? gamma, Tensor mean, Tensor square, Tensor? bits, float e_lambda,"
        " bool needs_map, bool needs_gamma) -> (Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=3,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[2], needs[1]),
    mask=gating.mask,
)
