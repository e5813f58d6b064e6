"""The recipe for global context: channel gates by a network on a mean over positions that a softmax weighs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend, functional
from ..ops.context_by import context_by
from ..reference.layers import is_touched
from .gates import UNEXPECTED, fits, is_as_expected
from .layers import is_dense


class ContextGate:
    """``x · network(Σ_hw softmax_hw(convolution(x)) · x)``, or of the plain mean where there is no convolution.

    Args:
        network: of the module and the context ``(N, C, 1, 1)``, its gates; calls the module's own layers.
        convolution: the name of the child that makes the softmax's logits, 1×1 to one channel, or None.
        plain: why a module computes another formula, or None.
    """

    def __init__(
        self,
        network: Callable[[Any, Tensor], Tensor],
        convolution: str,
        plain: Callable[[Any], str | None] = lambda _: None,
    ) -> None:
        self.network, self.convolution, self.plain = network, convolution, plain

    def obstacle(self, module: nn.Module) -> str | None:
        layer = module._modules.get(self.convolution)
        if layer is not None and (type(layer) is not nn.Conv2d or not is_dense(layer) or is_touched(layer)):
            return f"{self.convolution} is {type(layer).__name__}, has hooks, or a forward of its own"
        return self.plain(module)

    def how(self, module: nn.Module) -> str:
        pool = "mean" if module._modules.get(self.convolution) is None else "mean with a softmax's weights"
        return f"by parts, gates in PyTorch: a network on the {pool}"

    def __call__(self, module: Any, x: Tensor, *, shortcut: Tensor | None = None) -> Tensor | None:
        if (reason := self.obstacle(module)) is not None:
            backend.refuse(reason)
            return None
        layer: Any = module._modules.get(self.convolution)
        weights = () if layer is None else (layer.weight, layer.bias)
        if not is_as_expected(x, shortcut) or (weights and not fits(x, weights)):
            backend.refuse(UNEXPECTED)
            return None
        # An op cannot call the network, so whoever traces gets the plain forward, for its compiler to fuse.
        if torch.compiler.is_compiling() or not backend.use_triton(x, *weights, shortcut):
            return None
        network = partial(self.network, module)
        if layer is None:
            return functional.gate_by(x, network, shortcut)
        return context_by(x, layer.weight, layer.bias, network, shortcut)
