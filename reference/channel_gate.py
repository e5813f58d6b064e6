"""Gates of one value per channel, from pooled channels: what SE, ECA and coordinate attention have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy

from .activations import GATES, HIDDEN
from .common import add_shortcut
from .parameters import Dense, check_parameter

POOLS = ("mean", "max", "both", "half")
HIDDEN_ACTIVATIONS = tuple(HIDDEN)
ACTIVATIONS = tuple(GATES)


def pooled(x: Tensor, pool: str) -> list[Tensor]:
    """What a gate network gets, ``(N, C)`` each: the means over positions, the maxima, both, or half of each added up.

    Tied maxima share the gradient evenly.
    """
    if pool == "mean":
        return [x.mean((2, 3))]
    if pool == "half":
        return [0.5 * x.mean((2, 3)) + 0.5 * x.amax((2, 3))]
    return [x.amax((2, 3))] if pool == "max" else [x.mean((2, 3)), x.amax((2, 3))]


def activate(logits: Tensor, activation: str) -> Tensor:
    """A gate's last step."""
    return GATES[activation](logits)


def dense_gate(
    x: Tensor, weights: Dense, *, pool: str = "mean", hidden_activation: str = "relu", activation: str = "sigmoid"
) -> Tensor:
    """The gate of one or two dense layers, ``(N, C, 1, 1)``; see :func:`triton_attn.functional.channel_gate`."""
    weight1, bias1, weight2, bias2 = weights
    logits = None
    for vector in pooled(x, pool):
        own = F.linear(vector, weight1, bias1)
        if weight2 is not None:
            own = F.linear(HIDDEN[hidden_activation](own), weight2, bias2)
        logits = own if logits is None else logits + own
    assert logits is not None
    return activate(logits, activation).unsqueeze(-1).unsqueeze(-1)


def channel_gate(x: Tensor, weights: Dense, shortcut: Tensor | None = None, **kinds: str) -> Tensor:
    """:func:`triton_attn.functional.channel_gate` in plain PyTorch, of the kinds that :func:`dense_gate` takes."""
    return add_shortcut(x * dense_gate(x, weights, **kinds), shortcut)


def gate_by(x: Tensor, network: Callable[..., Tensor], shortcut: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """:func:`triton_attn.functional.gate_by` in plain PyTorch."""
    gate = network(*(vector[:, :, None, None] for vector in pooled(x, pool)))
    check_gate(gate, x)
    return add_shortcut(x * gate, shortcut)


def check_gate(gate: object, x: Tensor) -> None:
    """Raise unless a network returned a gate for every image and channel.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is of another shape.
    """
    if isinstance(gate, Proxy):
        return  # a trace has no numbers
    if not isinstance(gate, Tensor):
        raise TypeError(f"network must return a tensor of gates, got {type(gate).__name__}")
    wanted = (*x.shape[:2], 1, 1)
    if tuple(gate.shape) != wanted:
        raise ValueError(f"network must return gates of shape {wanted}, got {tuple(gate.shape)}")


def neighbours_gate(x: Tensor, weight: Tensor, *, pool: str = "mean", activation: str = "sigmoid") -> Tensor:
    """The gate of a convolution over channels, ``(N, C, 1, 1)``; see :func:`triton_attn.functional.eca`."""
    # On a CPU a convolution of the pooled map's own strides is half as fast again as one of rows.
    taps, padding, logits = weight.view(1, 1, -1), weight.numel() // 2, None
    for vector in pooled(x, pool):
        own = F.conv1d(vector.unsqueeze(-1).transpose(1, 2), taps, padding=padding)
        logits = own if logits is None else logits + own
    assert logits is not None
    return activate(logits, activation).transpose(1, 2).unsqueeze(-1)


def eca(
    x: Tensor, weight: Tensor, shortcut: Tensor | None = None, *, pool: str = "mean", activation: str = "sigmoid"
) -> Tensor:
    """:func:`triton_attn.functional.eca` in plain PyTorch."""
    return add_shortcut(x * neighbours_gate(x, weight, pool=pool, activation=activation), shortcut)


def check_dense(weight1: Tensor, bias1: Tensor | None, weight2: Tensor | None, bias2: Tensor | None) -> None:
    """Raise a ValueError or TypeError that names the argument unless the parameters fit together."""
    if weight1.dim() != 2:
        raise ValueError(f"weight1 must be (m, C), got shape {tuple(weight1.shape)}")
    hidden, channels = weight1.shape
    if hidden == 0 or channels == 0:
        raise ValueError(f"weight1 must be (m, C) with m and C of at least 1, got shape {tuple(weight1.shape)}")
    if weight2 is None and hidden != channels:
        raise ValueError(f"weight1 must be (C, C) where there is no weight2, got {tuple(weight1.shape)}")
    if weight2 is None and bias2 is not None:
        raise ValueError(f"bias2 must be None where there is no weight2, got shape {tuple(bias2.shape)}")
    shapes = ("bias1", bias1, (hidden,)), ("weight2", weight2, (channels, hidden)), ("bias2", bias2, (channels,))
    for name, value, shape in shapes:
        if value is not None:
            check_parameter(name, value, shape, weight1, f" beside a weight1 of {(hidden, channels)}")


def check_neighbours(weight: Tensor) -> None:
    """Raise a ValueError that names the argument unless it is the weight of such a convolution."""
    if weight.numel() != max(weight.shape, default=0) or weight.numel() % 2 == 0:
        raise ValueError(f"weight must hold an odd number of taps, (K,) or (1, 1, K), got shape {tuple(weight.shape)}")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise a ValueError that names the argument unless its value is one of those known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
