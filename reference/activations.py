"""The activations of gate networks, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

HIDDEN: dict[str, Activation] = {
    "relu": F.relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "none": lambda z: z,
}
"""Between the layers of a gate network."""

GATES: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "none": lambda z: z,
    "double_sigmoid": lambda z: 2 * torch.sigmoid(z),
    "double_hard_sigmoid": lambda z: 2 * F.hardsigmoid(z),
    "one_plus": lambda z: 1 + z,
}
"""From logits to gates."""

CHOICES = ("sigmoid", "hard_sigmoid", "none")
"""The gates that published networks have; the others are what these become for the identity's sake."""

ONE_AT_ZERO = {"sigmoid": "double_sigmoid", "hard_sigmoid": "double_hard_sigmoid", "none": "one_plus"}
"""The gate that is exactly 1 where the logit is 0, in place of another."""
