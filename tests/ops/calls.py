"""The calls of our ops, as PyTorch's dispatcher sees them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Notes every call of an op of ours: the op, its arguments, its results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "triton_attn":
            self.seen.append((func, args, result))
        return result


def kernels_of_backward(y: Tensor) -> set[str]:
    """The names of the kernels that the backward of ``y.sum()`` starts."""
    from benchmarks.counted.meter import count_kernels

    with count_kernels() as traffic:
        y.sum().backward()
    return set(traffic.launches)
