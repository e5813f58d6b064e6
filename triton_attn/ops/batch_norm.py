"""The steps of a channel gate with a batch norm in front: what is normalised and activated is never written.

Between them is a gate network, as for :mod:`.gating`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import batch_norm as plain
from ..reference.batch_norm import BatchNorm
from ..tuning import normed_rules, rules, weighed_rules
from . import launch, passes
from .gating import Pooled, widened
from .library import Results, new_like
from .passes import Maps, multiply, multiply_bwd, start_by_spans
from .spans import empty_parts, moments, spans_of


class Norm(NamedTuple):
    """A batch norm, ``(C,)`` each: what it normalises by, and its parameters, which there may not be.

    In training the variance is the unbiased one, which running statistics take.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    eps: float
    activation: str

    def arguments(self, x: Tensor, *, activation: bool = True) -> dict[str, Any]:
        """What kernels over a map like x are told of it."""
        told = {
            "mean_ptr": self.mean,
            "variance_ptr": self.variance,
            "weight_ptr": self.weight,
            "bias_ptr": self.bias,
            "count": x.shape[0] * x.shape[2] * x.shape[3],
            "TRAINING": self.training,
            "EPS": self.eps,
        }
        return told | {"ACTIVATION": self.activation} if activation else told


class NormTensors(NamedTuple):
    """Of a batch norm, ``(C,)`` each; running statistics are read outside of training alone."""

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None

    def norm(self, statistics: Results, training: bool, eps: float, activation: str = "none") -> Norm:
        """The norm as its kernels take it, by the batch's ``statistics`` in training."""
        weight, bias, *running = self
        mean, variance = statistics if training else running
        assert mean is not None
        assert variance is not None
        weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
        return Norm(mean.contiguous(), variance.contiguous(), weight, bias, training, eps, activation)


def by_pytorch(running: Results, given: tuple[bool, float], x: Tensor, *affine: Tensor | None) -> Tensor:
    """The normalised map, with the ``running`` mean and variance, and weight and bias in ``affine``."""
    (weight, bias), (mean, variance), (training, eps) = affine, running, given
    return plain.batch_norm(x, BatchNorm(weight, bias, mean, variance, training, eps=eps))


class Normalised(torch.autograd.Function):
    """The normalised map of what stands for it: so its gradient is handed on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:  # noqa: ARG004
        mean, variance, weight, bias, training, eps, _ = norm
        count = x.numel() // x.shape[1]
        variance = widened(variance) * ((count - 1) / count if training else 1.0)
        scale = torch.rsqrt(variance + eps) * (1.0 if weight is None else weight)
        v = (widened(x) - mean[:, None, None]) * scale[:, None, None]
        return (v if bias is None else v + bias[:, None, None]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ARG004
        return grad, None


def empty_statistics(x: Tensor, training: bool) -> tuple[Tensor | None, Tensor | None]:
    """Room for the batch's mean and variance; None for each outside of training."""
    mean, variance = (x.new_empty((x.shape[1],), dtype=torch.float32) if training else None for _ in range(2))
    return mean, variance


NO_NORM: Any = (None,) * len(Norm._fields)
"""What is given for a norm where there is none, by kernels and launchers that take one."""


def told_of(norm: Norm | None, x: Tensor) -> dict[str, Any]:
    """What kernels are told that know nothing of activations, and may be told of no norm either."""
    if norm is not None:
        return norm.arguments(x, activation=False)
    pointers = dict.fromkeys(("mean_ptr", "variance_ptr", "weight_ptr", "bias_ptr", "count"))
    return {**pointers, "TRAINING": False, "EPS": 0.0}


def _start(kernel: Any, like: Tensor, channels_last: bool, maps: Maps, **arguments: Any) -> None:
    start_by_spans(kernel, like, channels_last, maps, normed_rules.normed, **arguments)


class Squeezed(NamedTuple):
    """What a gate network gets: pooled parts of so many positions, and images' means less the batch norm's."""

    parts: Pooled
    positions: int
    centred: Tensor | None


def squeeze(x: Tensor, norm: Norm, channels_last: bool, *, saves: bool) -> Squeezed:
    """The means over positions of the normalised, activated map; in training the norm's mean and variance are made.

    The mean behind a batch norm is the batch norm of the mean: so without an activation one pass over x is all.
    """
    linear = norm.activation == "none"
    pooled = Squeezed(Pooled(None, None, None), 1, None)
    if norm.training or linear:
        pooled = _statistics(x, norm, channels_last, pools=linear, saves=saves)
    if linear:
        return pooled
    from ..kernels.normed_gate import normed_squeeze_kernel

    parts = empty_parts(x)
    told = norm.arguments(x)
    _start(normed_squeeze_kernel, x, channels_last, {"x": x}, sum_ptr=parts, x_ptr=x, spans=spans_of(x), **told)
    return Squeezed(Pooled(parts, None, None), x.shape[2] * x.shape[3], None)


def _statistics(x: Tensor, norm: Norm, channels_last: bool, *, pools: bool, saves: bool) -> Squeezed:
    batch, channels, height, width = x.shape
    pooled = x.new_empty((batch, 1, channels), dtype=torch.float32) if pools else None
    centred = x.new_empty((batch, channels), dtype=torch.float32) if pools and saves else None
    span = weighed_rules.span(height * width)
    statistics(x, norm, *moments(x, channels_last), {"SPAN": span}, pooled=pooled, centred=centred)
    return Squeezed(Pooled(pooled, None, None), 1, centred)


def statistics(
    x: Tensor,
    norm: Norm,
    mean_parts: Tensor,
    square_parts: Tensor,
    sizes: dict[str, int],
    *,
    pooled: Tensor | None = None,
    centred: Tensor | None = None,
) -> None:
    """In training write the norm's mean and variance, from those of parts ``(N, S, C)`` of the map.

    Where there is room for them, also the images' means behind the norm, and what theirs are less the norm's.

    Args:
        sizes: of parts: ``SPAN`` positions; or with a ``width``, which is the map's, ``SPAN`` rows and ``BLOCK_W``
            columns.
    """
    from ..kernels.batch_norm import batch_statistics_kernel

    _start_over_channels(
        batch_statistics_kernel,
        x,
        norm,
        mean_parts,
        (),
        centred_ptr=centred,
        pooled_ptr=pooled,
        mean_parts_ptr=mean_parts,
        square_parts_ptr=square_parts,
        POOL=pooled is not None,
        SAVE=centred is not None,
        **{"width": None, "BLOCK_W": 0, **sizes},
    )


def _start_over_channels(
    kernel: Any, x: Tensor, norm: Norm, parts: Tensor, without: tuple[str, ...], **arguments: Any
) -> None:
    """Start a kernel that has a program for every block of channels, of parts ``(N, S, C)``, ``without`` some names."""
    batch, splits, channels = parts.shape
    config = normed_rules.batch_statistics(channels, splits)
    told = {"batch": batch, "channels": channels, "positions": x.shape[2] * x.shape[3], "parts": splits}
    told |= norm.arguments(x, activation=False) | config
    told = {name: value for name, value in told.items() if name not in without}
    launch.start(kernel, (rules.cdiv(channels, config["BLOCK_C"]),), x.device, **arguments, **told)


def apply_fwd(
    x: Tensor, norm: Norm, gate: Tensor, channels_last: bool, shortcut: Tensor | None, *, saves: bool
) -> tuple[Tensor, Tensor | None]:
    """``f(v) · gate`` by gates ``(N, C)``, or ``relu(… + shortcut)``; with ``saves`` also the mask's bits."""
    from ..kernels.normed_gate import normed_apply_fwd_kernel

    told = norm.arguments(x)
    return multiply(_start, normed_apply_fwd_kernel, x, channels_last, shortcut, saves, gate_ptr=gate, **told)


class Sums(NamedTuple):
    """Of y's gradient, in parts ``(N, S, C)``: the gates' gradient, and what the batch norm's is made of."""

    dgate: Tensor
    gradient: Tensor | None
    moment: Tensor | None
    slope: Tensor | None
    slope_moment: Tensor | None

    @property
    def arguments(self) -> dict[str, Any]:
        """As kernels take them."""
        return {f"{name}_ptr": each for name, each in zip(self._fields, self, strict=True)}


def sums(grad: Tensor, x: Tensor, norm: Norm, bits: Tensor | None, channels_last: bool, *, needs_norm: bool) -> Sums:
    """All sums of the backward over positions, with ``grad`` behind the mask that ``bits`` hold."""
    from ..kernels.normed_gate import normed_sums_kernel

    activated = norm.activation != "none"
    found = Sums(
        empty_parts(x),
        *(empty_parts(x) if needs_norm else None for _ in range(2)),
        *(empty_parts(x) if needs_norm and activated else None for _ in range(2)),
    )
    told = {**found.arguments, "spans": spans_of(x), "NEEDS_NORM": needs_norm, **norm.arguments(x)}
    passes.sums(_start, normed_sums_kernel, grad, x, channels_last, bits, **told)
    return found


class Gradients(NamedTuple):
    """Of the batch norm: of its parameters, and what its mean and variance take off the map's."""

    weight: Tensor | None
    bias: Tensor | None
    by_mean: Tensor | None
    by_variance: Tensor | None


def parameters_bwd(
    found: Results,
    x: Tensor,
    norm: Norm,
    gate: Tensor | None,
    dpooled: Tensor | None,
    centred: Tensor | None,
    *,
    needs: bool,
    dpeak: Tensor | None = None,
    peak: Tensor | None = None,
) -> Gradients:
    """From the sums, the gates and the gradient of what was pooled; those of the parameters only where ``needs``.

    The sums are those of :class:`Sums` without the first; or without a gate the first two of them, of what was gated.
    Where maxima were pooled too, ``dpeak`` is their gradient, and ``peak`` what x is there less the norm's mean.
    """
    from ..kernels.batch_norm import batch_norm_parameters_bwd_kernel

    gradient, moment, *slopes = found
    slope, slope_moment = slopes or (None, None)
    assert gradient is not None
    dweight, dbias = new_like(norm.weight, norm.bias, needed=needs)
    size = gradient.shape[2:]
    by_mean, by_variance = (x.new_empty(size, dtype=torch.float32) if norm.training else None for _ in range(2))
    _start_over_channels(
        batch_norm_parameters_bwd_kernel,
        x,
        norm,
        gradient,
        ("weight_ptr", "bias_ptr", "BLOCK_R"),
        dweight_ptr=dweight,
        dbias_ptr=dbias,
        by_mean_ptr=by_mean,
        by_variance_ptr=by_variance,
        gate_ptr=gate,
        dpooled_ptr=dpooled,
        centred_ptr=centred,
        dpeak_ptr=dpeak,
        peak_ptr=peak,
        ACTIVATED=norm.activation != "none",
        gradient_ptr=gradient,
        moment_ptr=moment,
        slope_ptr=slope,
        slope_moment_ptr=slope_moment,
    )
    return Gradients(dweight, dbias, by_mean, by_variance)


def apply_bwd(
    grad: Tensor,
    x: Tensor,
    norm: Norm,
    gate: Tensor,
    bits: Tensor | None,
    dpooled: Tensor,
    by: Gradients | None,
    channels_last: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the map, and with ``bits`` that of the shortcut; ``by`` is for training."""
    from ..kernels.normed_gate import normed_apply_bwd_kernel

    told: dict[str, Any] = {"gate_ptr": gate, "dpooled_ptr": dpooled, **norm.arguments(x)}
    told |= {f"{name}_ptr": None if by is None else getattr(by, name) for name in ("by_mean", "by_variance")}
    reads = norm.training or norm.activation != "none"
    return multiply_bwd(_start, normed_apply_bwd_kernel, grad, x, channels_last, bits, reads, **told)
