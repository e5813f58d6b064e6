"""What ``torch.compile`` makes of a network: which ops of ours its graphs have.

A block that is compiled as its plain twin gives the right numbers, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from triton_attn.ops.library import NAMESPACE


class Graphs:
    """A compiler for ``torch.compile(…, backend=Graphs())``: notes our ops in a graph, and hands it on."""

    compiler = "inductor"

    def __init__(self, compiler: str | None = None) -> None:
        self.compiler = compiler or self.compiler
        self.ops: list[list[str]] = []
        """Of every graph that was compiled."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        parts = [each for each in graph.modules() if isinstance(each, torch.fx.GraphModule)]
        targets = [node.target for part in parts for node in part.graph.nodes]
        self.ops.append([str(target) for target in targets if getattr(target, "namespace", None) == NAMESPACE])
        return torch._dynamo.lookup_backend(self.compiler)(graph, inputs)

    def all_served(self) -> bool:
        """Whether something was compiled, and nothing without an op of ours."""
        return bool(self.ops) and all(self.ops)
