"""Channel gates (SE, ECA) with a batch norm in front as one op: neither its map nor an activated one is written.

Passes over the map in training: 3 forward and 5 backward, 4 and 6 with a shortcut (and a mask of one bit per element),
since the mean behind a batch norm is the batch norm of the mean: the one read that finds the statistics is the squeeze.
An activation between the two bends that, and costs a read more forward. With running statistics it is 3 and 4, 4 and 5
with a shortcut; there an activation costs a read more backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import batch_norm as plain_norm
from ..reference import channel_gate as plain
from ..reference.batch_norm import BatchNorm, tensors_of
from . import batch_norm, dense, gating
from .batch_norm import Norm, NormTensors, empty_statistics
from .dense import Made, Network, Parameters, Weights
from .eca import convolve, convolve_bwd
from .gating import Pooled
from .layout import in_layout, served, served_both
from .library import Launcher, Op, Results, new_like
from .masks import mask
from .partial_sums import partial_sums
from .passes import multiply_fake, room_bwd
from .shortcut import added, in_one

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
    found: Any = NORMED_GATE(x, *tensors_of(norm), *weights, in_layout(last, channels_last), *constants)
    return added(taken_in(norm, found), shortcut, last)


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


class Constants(NamedTuple):
    """What the gate and the norm are, beside their tensors."""

    network: str
    hidden_activation: str
    activation: str
    training: bool
    eps: float
    norm_activation: str

    @property
    def dense(self) -> Network:
        """The gate network, where it is one of dense layers."""
        return Network("mean", self.hidden_activation, self.activation)

    def norm(self, tensors: NormTensors, statistics: Results) -> Norm:
        """The norm as its kernels take it, by the batch's ``statistics`` in training."""
        return tensors.norm(statistics, *self[3:])


class Kept(NamedTuple):
    """The batch's mean and unbiased variance (in training), and what the backward needs beside them.

    That is the images' means less the batch norm's, the pooled vector, the hidden units, the gate, and ReLU's mask.
    """

    mean: Tensor | None
    variance: Tensor | None
    centred: Tensor | None
    pooled: Tensor | None
    hidden: Tensor | None
    gate: Tensor | None
    bits: Tensor | None


def forward(
    x: Tensor,
    norm_tensors: NormTensors,
    parameters: Parameters,
    shortcut: Tensor | None,
    constants: Constants,
    saves: bool,
) -> Results:
    """The output, and of :class:`Kept` all, or the statistics alone."""
    x, channels_last = served(x)
    statistics = empty_statistics(x, constants.training)
    norm = constants.norm(norm_tensors, statistics)
    pooled = batch_norm.squeeze(x, norm, channels_last, saves=saves)
    parameters = dense.contiguous(parameters)
    if constants.network == DENSE:
        given = pooled.parts, pooled.positions, parameters, constants.dense, x.dtype
        made = dense.forward(*given, saves=saves)
    else:
        convolved = pooled.parts, pooled.positions, parameters.weight1, "mean", constants.activation, saves
        gate, whole = convolve(*convolved)
        made = Made(gate, None, whole)
    y, bits = batch_norm.apply_fwd(x, norm, made.gate, channels_last, in_layout(shortcut, channels_last), saves=saves)
    if not saves:
        return y, *statistics
    return y, *Kept(*statistics, pooled.centred, made.pooled.mean, made.hidden, made.gate, bits)


def _forward_fake(x: Tensor, norm_tensors: NormTensors, parameters: Parameters, *others: Any) -> Results:
    shortcut, constants, saves = others
    y, bits = multiply_fake(x, shortcut, saves)
    statistics = empty_statistics(x, constants.training)
    if not saves:
        return y, *statistics
    batch, channels = x.shape[:2]
    centred = x.new_empty((batch, channels), dtype=torch.float32) if constants.norm_activation == "none" else None
    if constants.network == DENSE:
        two_layers = parameters.weight2 is not None
        made = dense.empty(x, batch, channels, parameters.weight1, two_layers, constants.dense, True)
    else:
        gate = x.new_empty((batch, channels), dtype=torch.float32)
        made = Made(gate, None, gating.empty_pooled((batch, channels), "mean", x.device))
    return y, *Kept(*statistics, centred, made.pooled.mean, made.hidden, made.gate, bits)


def backward(
    grad: Tensor,
    x: Tensor,
    norm_tensors: NormTensors,
    parameters: Parameters,
    kept: Kept,
    constants: Constants,
    needs_map: bool,
    needs_norm: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, of the norm's weight and bias, of weights and shortcut; None where not needed."""
    mean, variance, centred, pooled, hidden, gate, bits = kept
    assert gate is not None
    grad, x, channels_last = served_both(grad, x)
    norm = constants.norm(norm_tensors, (mean, variance))
    made, parameters = Made(gate, hidden, Pooled(pooled, None, None)), dense.contiguous(parameters)
    sums_of_norm = needs_norm or (needs_map and constants.training)
    sums = batch_norm.sums(grad, x, norm, bits, channels_last, needs_norm=sums_of_norm)
    of_weights: tuple[Tensor | None, ...] = (None,) * 4
    if constants.network == DENSE:
        given = parameters, constants.dense, x.dtype
        dpooled, _, of_weights = dense.backward(
            sums.dgate, made, *given, needs_pooled=needs_map or needs_norm, needs_weights=needs_weights
        )
    else:
        weight1 = parameters.weight1
        convolved = sums.dgate, gate, made.pooled, weight1, "mean", constants.activation, needs_weights
        dpooled, partial = convolve_bwd(*convolved)
        if partial is not None:
            of_weights = partial_sums(partial, weight1.dtype).view_as(weight1), None, None, None
    dx = dshortcut = by = None
    if sums_of_norm:
        assert dpooled is not None
        by = batch_norm.parameters_bwd(sums[1:], x, norm, gate, dpooled, centred, needs=needs_norm)
    if needs_map:
        assert dpooled is not None
        dx, dshortcut = batch_norm.apply_bwd(grad, x, norm, gate, bits, dpooled, by, channels_last)
    of_norm = (None, None) if by is None else (by.weight, by.bias)
    return dx, *of_norm, *of_weights, dshortcut


def _backward_fake(
    grad: Tensor, x: Tensor, norm_tensors: NormTensors, parameters: Parameters, kept: Kept, *others: Any
) -> Results:
    _, needs_map, needs_norm, needs_weights = others
    dx, dshortcut = room_bwd(*served(x), kept.bits, needs_map)
    of_norm = new_like(norm_tensors.norm_weight, norm_tensors.norm_bias, needed=needs_norm)
    return dx, *of_norm, *new_like(*parameters, needed=needs_weights), dshortcut


def _formula(x: Tensor, *arguments: Any) -> Tensor:
    (weight, bias, mean, variance), (weight1, *others) = arguments[:4], arguments[4:8]
    network, hidden, activation, training, eps, norm_activation = arguments[8:]
    norm = BatchNorm(weight, bias, mean, variance, training, eps=eps, activation=norm_activation)
    v = plain_norm.batch_norm(x, norm)
    if network == NEIGHBOURS:
        return plain.eca(v, weight1, activation=activation)
    bias1, weight2, bias2 = others
    weight2 = None if weight2 is None else weight2.flatten(1)
    weights = weight1.flatten(1), bias1, weight2, bias2
    return plain.channel_gate(v, weights, hidden_activation=hidden, activation=activation)


NORMED_GATE = Op(
    Launcher("normed_channel_gate", forward, _forward_fake, 8),
    Launcher("normed_channel_gate_backward", backward, _backward_fake, 8),
    tensors=10,
    also=2,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[9], needs[1] or needs[2], any(needs[5:9])),
    gradients=lambda found, _: (*found[:3], None, None, *found[3:]),
    mask=mask,
)
