"""Recipes for gates that are sums of two, or that stand before a sum: scSE, split attention, selective kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend, functional
from ..ops.scse_by import scse_by
from ..reference.layers import is_touched
from .gates import POOLS, UNEXPECTED, fits, is_as_expected
from .layers import is_dense


class SplitGate:
    """Several maps, side by side along the channels, each times gates of its own, and then added up.

    Args:
        maps: of the module and its input, the maps side by side, ``(N, R · C, H, W)``.
        network: of the module and the sum of the maps' means ``(N, C, 1, 1)``, their gates ``(N, R · C, 1, 1)``.
        count: how many maps a module has.
        obstacle: why a module is not computed so, or None.
    """

    def __init__(
        self,
        maps: Callable[[Any, Tensor], Tensor],
        network: Callable[[Any, Tensor], Tensor],
        count: Callable[[Any], int],
        obstacle: Callable[[Any], str | None] = lambda _: None,
    ) -> None:
        self.maps, self.network, self.count, self.obstacle = maps, network, count, obstacle

    def how(self, module: nn.Module) -> str:
        return f"by parts, gates in PyTorch: {self.count(module)} maps, then their sum"

    def __call__(self, module: Any, x: Tensor) -> Tensor | None:
        if (reason := self.obstacle(module)) is not None:
            backend.refuse(reason)
            return None
        if not is_as_expected(x, None):
            backend.refuse(UNEXPECTED)
            return None
        if not backend.use_triton(x):
            return None
        maps, count = self.maps(module, x), self.count(module)

        def network(mean: Tensor) -> Tensor:
            return self.network(module, mean.unflatten(1, (count, -1)).sum(1))

        gated = functional.gate_by(maps, network)
        return gated if count == 1 else gated.unflatten(1, (count, -1)).sum(1)


class SumGate:
    """``x · channels + x · positions`` in one pass, where these are Sequentials: a pool and layers; a 1×1 convolution
    to one channel and layers.

    Args:
        channels, positions: the names of these children.
    """

    def __init__(self, channels: str, positions: str) -> None:
        self.channels, self.positions = channels, positions

    def obstacle(self, module: nn.Module) -> str | None:
        parts: Any = [module._modules[name] for name in (self.channels, self.positions)]
        if any(type(part) is not nn.Sequential or not len(part) or is_touched(part) for part in parts):
            return f"{self.channels} or {self.positions} is no plain Sequential"
        pool, convolution = (part[0] for part in parts)
        if type(pool) not in POOLS or pool.output_size not in (1, (1, 1)) or is_touched(pool):
            return f"{self.channels} begins with {type(pool).__name__}, expected an average pool to one value"
        one = is_dense(convolution) and type(convolution) is nn.Conv2d and convolution.out_channels == 1
        if not one or is_touched(convolution):
            return (
                f"{self.positions} begins with {type(convolution).__name__}, expected a 1×1 convolution to one channel"
            )
        return None

    def how(self, module: nn.Module) -> str:  # noqa: ARG002
        return "by parts, gates in PyTorch: of channels and of positions, both in one pass"

    def __call__(self, module: Any, x: Tensor, *, shortcut: Tensor | None = None) -> Tensor | None:
        if (reason := self.obstacle(module)) is not None:
            backend.refuse(reason)
            return None
        channels, positions = (module._modules[name] for name in (self.channels, self.positions))
        weights = positions[0].weight, positions[0].bias
        if not is_as_expected(x, shortcut) or not fits(x, weights) or weights[0].shape[1] != x.shape[1]:
            backend.refuse(UNEXPECTED)
            return None
        # An op cannot call the networks, so whoever traces gets the plain forward, for its compiler to fuse.
        if torch.compiler.is_compiling() or not backend.use_triton(x, *weights, shortcut):
            return None
        of_positions = partial(_behind, positions, weights[1], x.dtype)
        return scse_by(x, weights[0], partial(_rest, channels), of_positions, shortcut)


def _rest(layers: nn.Sequential, y: Tensor) -> Tensor:
    """What the layers behind the first make of it."""
    for layer in layers[1:]:
        y = layer(y)
    return y


def _behind(layers: nn.Sequential, bias: Tensor | None, dtype: torch.dtype, sums: Tensor) -> Tensor:
    """The gates of positions, from the convolution's sums without its bias."""
    return _rest(layers, (sums if bias is None else sums + bias.float()).to(dtype)).float()
