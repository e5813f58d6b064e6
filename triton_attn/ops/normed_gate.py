"""Channel gates (SE, ECA) with a batch norm in front as one op: neither its map nor an activated one is written.

Passes over the map in training: 3 forward and 5 backward, 4 and 6 with a shortcut (and a mask of one bit per element),
since the mean behind a batch norm is the batch norm of the mean: the one read that finds the statistics is the squeeze.
An activation between the two bends that, and costs a read more forward. With running statistics it is 3 and 4, 4 and 5
with a shortcut; there an activation costs a read more backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import batch_norm as plain_norm
from ..reference import channel_gate as plain
from ..reference.batch_norm import BatchNorm, tensors_of
from . import batch_norm, dense, gating
from .batch_norm import Norm
from .dense import Made, Network
from .eca import convolve, convolve_bwd
from .gating import Pooled
from .layout import empty_map, served
from .library import Launcher, Op, Results
from .linked import in_one
from .partial_sums import partial_sums

Weights = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
DENSE, NEIGHBOURS = "dense", "neighbours"


def normed_gate(
    x: Tensor, norm: BatchNorm, weights: Weights, shortcut: Tensor | None, network: str, hidden: str, activation: str
) -> Tensor:
    """The gated map of a normalised one, for arguments that were checked; running statistics are changed in training.

    ``network`` is ``"dense"``, with the weights and activations of :func:`.channel_gate`, or ``"neighbours"``, with the
    weight of :func:`.eca` and three None.
    """
    x, channels_last = served(x)
    constants = (network, hidden, activation, norm.training, norm.eps, norm.activation)
    last = in_one(x, shortcut)
    last = None if last is None else served(last, channels_last)[0]
    found: Any = NORMED_GATE(x, *tensors_of(norm), *weights, last, *constants)
    y = taken_in(norm, found)
    return y if shortcut is None or last is not None else torch.relu(y + shortcut)


def taken_in(norm: BatchNorm, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """y of what the op found, whose statistics the running ones take in, in training."""
    y, *statistics = found
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        running = [norm.running_mean, norm.running_var]
        with torch.no_grad():
            if running[0].dtype != torch.float32 or running[1].dtype != torch.float32:
                statistics = [new.to(old.dtype) for old, new in zip(running, statistics, strict=True)]
            torch._foreach_lerp_(running, statistics, norm.momentum)
    return y


def is_served(x: Tensor, norm: BatchNorm) -> bool:
    """Whether there are values enough: of one in a channel PyTorch says what is wrong, and of none what comes out."""
    return x.numel() // max(x.shape[1], 1) > 1 or (not norm.training and x.numel() > 0)


def _norm(x: Tensor, tensors: Results, statistics: Results, constants: tuple[bool, float, str]) -> Norm:
    weight, bias, *running = tensors
    training, eps, activation = constants
    mean, variance = statistics if training else running
    assert mean is not None
    assert variance is not None
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    return Norm(mean.contiguous(), variance.contiguous(), weight, bias, training, eps, activation)


def forward(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    network: str,
    hidden_activation: str,
    activation: str,
    training: bool,
    eps: float,
    norm_activation: str,
    saves: bool,
) -> Results:
    """The output, the batch's mean and unbiased variance (in training), and what the backward needs beside them.

    That is the images' means less the batch norm's, the pooled vector, the hidden units, the gate, and ReLU's mask.
    """
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    statistics = _empty_statistics(x) if training else (None, None)
    tensors = norm_weight, norm_bias, running_mean, running_var
    norm = _norm(x, tensors, statistics, (training, eps, norm_activation))
    pooled = batch_norm.squeeze(x, norm, channels_last, saves=saves)
    parameters = dense.contiguous((weight1, bias1, weight2, bias2))
    if network == DENSE:
        kind = Network("mean", hidden_activation, activation)
        made = dense.forward(pooled.parts, pooled.positions, parameters, kind, x.dtype, saves=saves)
    else:
        given = pooled.parts, pooled.positions, parameters[0], "mean", activation, saves
        gate, whole = convolve(*given)
        made = Made(gate, None, whole)
    y, bits = batch_norm.apply_fwd(x, norm, made.gate, channels_last, shortcut, saves=saves)
    if not saves:
        return y, *statistics, *(None,) * 5
    return y, *statistics, pooled.centred, made.pooled.mean, made.hidden, made.gate, bits


def _empty_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = (x.new_empty((x.shape[1],), dtype=torch.float32) for _ in range(2))
    return mean, variance


def _forward_fake(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    network: str,
    hidden_activation: str,
    activation: str,
    training: bool,
    eps: float,
    norm_activation: str,
    saves: bool,
) -> Results:
    x, channels_last = served(x)
    y = empty_map(x, channels_last)
    statistics = _empty_statistics(x) if training else (None, None)
    if not saves:
        return y, *statistics, *(None,) * 5
    batch, channels = x.shape[:2]
    centred = x.new_empty((batch, channels), dtype=torch.float32) if norm_activation == "none" else None
    if network == DENSE:
        kind = Network("mean", hidden_activation, activation)
        made = dense.empty(x, batch, channels, weight1, weight2 is not None, kind, True)
    else:
        gate = x.new_empty((batch, channels), dtype=torch.float32)
        made = Made(gate, None, gating.empty_pooled((batch, channels), "mean", x.device))
    bits = None if shortcut is None else gating.empty_bits(x, channels_last)
    return y, *statistics, centred, made.pooled.mean, made.hidden, made.gate, bits


def backward(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    centred: Tensor | None,
    pooled: Tensor,
    hidden: Tensor | None,
    gate: Tensor,
    bits: Tensor | None,
    network: str,
    hidden_activation: str,
    activation: str,
    training: bool,
    eps: float,
    norm_activation: str,
    needs_map: bool,
    needs_norm: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, of the norm's weight and bias, of weights and shortcut; None where not needed."""
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    tensors = norm_weight, norm_bias, running_mean, running_var
    norm = _norm(x, tensors, (mean, variance), (training, eps, norm_activation))
    made = Made(gate, hidden, Pooled(pooled, None, None))
    parameters = dense.contiguous((weight1, bias1, weight2, bias2))
    sums_of_norm = needs_norm or (needs_map and training)
    sums = batch_norm.sums(grad, x, norm, bits, channels_last, needs_norm=sums_of_norm)
    of_weights: tuple[Tensor | None, ...] = (None,) * 4
    needs_pooled = needs_map or needs_norm
    if network == DENSE:
        kind = Network("mean", hidden_activation, activation)
        found = dense.backward(sums.dgate, made, parameters, kind, x.dtype, needs_pooled=needs_pooled)
        dpooled = found.dmean
        if needs_weights:
            of_weights = dense.weights_bwd(made, found, parameters, kind, x.dtype)
    else:
        given = sums.dgate, gate, made.pooled, parameters[0], "mean", activation, needs_weights
        dpooled, partial = convolve_bwd(*given)
        if partial is not None:
            of_weights = partial_sums(partial, weight1.dtype).view_as(weight1), None, None, None
    dx = dshortcut = by = None
    if sums_of_norm:
        assert dpooled is not None
        by = batch_norm.parameters_bwd(sums, x, norm, gate, dpooled, centred, needs=needs_norm)
    if needs_map:
        assert dpooled is not None
        dx, dshortcut = batch_norm.apply_bwd(grad, x, norm, gate, bits, dpooled, by, channels_last)
    of_norm = (None, None) if by is None else (by.weight, by.bias)
    return dx, *of_norm, *of_weights, dshortcut


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    centred: Tensor | None,
    pooled: Tensor,
    hidden: Tensor | None,
    gate: Tensor,
    bits: Tensor | None,
    network: str,
    hidden_activation: str,
    activation: str,
    training: bool,
    eps: float,
    norm_activation: str,
    needs_map: bool,
    needs_norm: bool,
    needs_weights: bool,
) -> Results:
    x, channels_last = served(x)
    of_norm, of_weights = (norm_weight, norm_bias), (weight1, bias1, weight2, bias2)
    return (
        empty_map(x, channels_last) if needs_map else None,
        *(t.new_empty(t.shape) if needs_norm and t is not None else None for t in of_norm),
        *(t.new_empty(t.shape) if needs_weights and t is not None else None for t in of_weights),
        empty_map(x, channels_last) if needs_map and bits is not None else None,
    )


def _formula(x: Tensor, *arguments: Any) -> Tensor:
    (weight, bias, mean, variance), (weight1, *others) = arguments[:4], arguments[4:8]
    network, hidden, activation, training, eps, norm_activation = arguments[8:]
    norm = BatchNorm(weight, bias, mean, variance, training, eps=eps, activation=norm_activation)
    v = plain_norm.batch_norm(x, norm)
    if network == NEIGHBOURS:
        return plain.eca(v, weight1, activation=activation)
    bias1, weight2, bias2 = others
    weight2 = None if weight2 is None else weight2.flatten(1)
    tensors = v, weight1.flatten(1), bias1, weight2, bias2
    return plain.channel_gate(*tensors, hidden_activation=hidden, activation=activation)


_TENSORS = (
    "Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor? running_mean, Tensor? running_var, Tensor weight1,"
    " Tensor? bias1, Tensor? weight2, Tensor? bias2"
)
_CONSTANTS = "str network, str hidden_activation, str activation, bool training, float eps, str norm_activation"
NORMED_GATE = Op(
    Launcher(
        f"normed_channel_gate({_TENSORS}, Tensor? shortcut, {_CONSTANTS}, bool saves)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        f"normed_channel_gate_backward(Tensor grad, {_TENSORS}, Tensor? mean, Tensor? variance, Tensor? centred,"
        f" Tensor pooled, Tensor? hidden, Tensor gate, Tensor? bits, {_CONSTANTS}, bool needs_map, bool needs_norm,"
        " bool needs_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=10,
    also=2,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[9], needs[1] or needs[2], any(needs[5:9])),
    gradients=lambda found, _: (*found[:3], None, None, *found[3:]),
    mask=gating.mask,
)
