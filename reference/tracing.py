"""Blocks under ``torch.fx``: within a network each is one node, and one that is traced by itself is traced through."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Proxy


def leaf(module: nn.Module, x: Proxy, *others: Any, **named: Any) -> Proxy:
    """The call of ``module`` on ``x`` and others as one node of the graph that is being traced."""
    tracer: Any = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x, *others), named)


def node(function: Callable[..., Any], *inputs: Any) -> Any:
    """The call of a function as one node: one that goes by shapes, or by what is None, which no trace knows.

    The function stands at the top of a module, where the code that a graph becomes finds it.
    """
    tracer: Any = next(each for each in inputs if isinstance(each, Proxy)).tracer
    return tracer.create_proxy("call_function", function, inputs, {})


def as_leaf(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that is a leaf where its module is part of what is traced."""

    @functools.wraps(forward)
    def traceable(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        x = inputs[0] if inputs else named.get("x")
        if isinstance(x, Proxy) and x.tracer.root is not self:  # type: ignore[attr-defined]
            return leaf(self, *(inputs or (named.pop("x"),)), **named)
        return forward(self, *inputs, **named)

    return traceable
