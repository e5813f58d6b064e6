"""The layers inside of other people's attention: which of them are what their class says, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

Name = Callable[[Any], str | None]

GATES: dict[type, str] = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hard_sigmoid"}
"""What the ops call what a module computes as a gate's last step; adapters add their library's own."""

HIDDEN: dict[type, Name] = {
    nn.ReLU: lambda _: "relu",
    nn.SiLU: lambda _: "silu",
    nn.Hardswish: lambda _: "hardswish",
    nn.GELU: lambda layer: "gelu" if layer.approximate == "none" else "gelu_tanh",
    nn.LeakyReLU: lambda layer: "leaky_relu" if layer.negative_slope == 0.01 else None,
}
"""Likewise for what stands between two layers, which may depend on how it was made."""

DROPS: set[type] = {nn.Identity}
"""What may stand on a residual branch and does nothing in evaluation, or while its ``drop_prob`` is 0."""


NORMS: dict[type, Name] = {nn.BatchNorm2d: lambda _: "none"}
"""What computes as ``nn.BatchNorm2d`` does, and how it activates by itself: as :data:`HIDDEN` says, or ``"none"``."""

RUNS: dict[type, Callable[[Any], Iterable[nn.Module]]] = {nn.Sequential: lambda layer: layer._modules.values()}
"""What calls its layers one after the other and does nothing else, and these."""


def unknown(_: nn.Module) -> None:
    """What a layer is called that none of these is."""


def is_dense(layer: nn.Module) -> bool:
    """Whether this is a plain layer from vectors to vectors: a linear one, or a 1×1 convolution."""
    kind = type(layer)
    if kind is not nn.Conv2d:
        return kind is nn.Linear
    return bool(layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding == (0, 0))
