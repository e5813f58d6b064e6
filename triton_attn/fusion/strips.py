"""Recipes for gates of rows and of columns, ``x · rows · columns``, by a network on the means of both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from ..ops.strips import gate_rows_and_columns
from .gates import UNEXPECTED, is_as_expected


class StripGate:
    """Both means in one pass, both gates in one; the network is called as it stands.

    Args:
        network: of the module and the means ``(N, C, H, 1)`` and ``(N, C, 1, W)``; calls the module's own layers, and
            returns gates of these shapes.
        plain: why a module computes another formula, or None.
    """

    def __init__(
        self,
        network: Callable[..., tuple[Tensor, Tensor]],
        plain: Callable[[Any], str | None] = lambda _: None,
    ) -> None:
        self.network, self.plain = network, plain

    def obstacle(self, module: nn.Module) -> str | None:
        return self.plain(module)

    def how(self, module: nn.Module) -> str:  # noqa: ARG002
        return "by parts, gates in PyTorch: one for every row and column"

    def __call__(self, module: Any, x: Tensor, *, shortcut: Tensor | None = None) -> Tensor | None:
        if (reason := self.obstacle(module)) is not None:
            backend.refuse(reason)
            return None
        if not is_as_expected(x, shortcut):
            backend.refuse(UNEXPECTED)
            return None
        # An op cannot call the network, so whoever traces gets the plain forward, for its compiler to fuse.
        if torch.compiler.is_compiling() or not backend.use_triton(x, shortcut):
            return None
        return gate_rows_and_columns(x, partial(self.network, module), shortcut)
