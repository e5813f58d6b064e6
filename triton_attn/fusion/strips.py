"""Recipes for gates of rows and of columns, ``x · rows · columns``, by a network on the means of both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from ..normed import norm_in_front
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

    def takes_a_norm(self, module: nn.Module, activation: str) -> bool:
        """Whether a batch norm in front of it, and what activates between them, may be part of its passes."""
        return activation == "none" and self.obstacle(module) is None

    def behind(
        self, module: Any, norm: nn.Module, x: Tensor, shortcut: Tensor | None = None, activation: str = "none"
    ) -> Tensor | None:
        """The output for ``norm(x)``, which is never written; ``norm`` is of a class in ``layers.NORMS``.

        None where that is not for the kernels, and nothing has happened.
        """
        if activation != "none" or self.obstacle(module) is not None or not is_as_expected(x, shortcut):
            return None
        taken = norm_in_front(norm, x, list(module.parameters()), shortcut, type(norm))
        return None if taken is None else gate_rows_and_columns(x, partial(self.network, module), shortcut, norm=taken)
