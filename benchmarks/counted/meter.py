"""Counting what a block moves and launches: kernels under Triton's interpreter, and PyTorch's own operators.

Bytes are those of the distinct addresses that each load and store of a tile asks for; sectors are the 32-byte sectors
that these lie in, which is what the memory system really moves. Parameters count once a launch, however often tiles
re-read them: they stay in a cache. An operator of PyTorch reads its inputs and writes its outputs once, wherever it is
called: eagerly, around an op of ours, or inside of one. Views and allocations move nothing.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SECTOR = 32
ROLES = ("map", "mask", "vector", "parameter")
# Operators that look at the shape of their input, or overwrite it, and read nothing of it.
READ_NOTHING = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "fill_", "zero_")


@dataclass
class Traffic:
    """Bytes and sectors (in bytes) by role, and launches by the name of the kernel or operator."""

    moved: Counter[str] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    map_launches: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Bytes of all roles."""
        return sum(self.moved.values())

    @property
    def total_sectors(self) -> int:
        """32 bytes for every sector touched, of all roles."""
        return sum(self.sectors.values())

    def launched(self, name: str, roles: Iterable[str]) -> None:
        """Note a launch whose tensors have these roles."""
        self.launches[name] += 1
        if "map" in roles:
            self.map_launches[name] += 1


@dataclass(frozen=True)
class Roles:
    """What a tensor is: a map, a mask (bits or bytes), a vector (anything small), or a parameter or its gradient.

    Args:
        map_elements: the size of the block's map. A tensor of at least half of it is a map too: one of half the
            channels, say. None takes every 4-D tensor for a map.
        parameter_shapes: those of the block's parameters. A parameter of a kernel is known by its argument's name, too.
    """

    map_elements: int | None = None
    parameter_shapes: frozenset[tuple[int, ...]] = frozenset()

    def of(self, t: Tensor, argument: str = "") -> str:
        """The role of a tensor, which a kernel may know as ``argument``."""
        if "weight" in argument or "bias" in argument or _shape(t) in self.parameter_shapes:
            return "parameter"
        if t.dtype in (torch.uint8, torch.bool):
            return "mask"
        is_map = t.dim() == 4 if self.map_elements is None else 2 * t.numel() >= self.map_elements
        return "map" if is_map else "vector"


def _shape(t: Tensor) -> tuple[int, ...]:
    """Without the last axes of size 1, which a 1×1 convolution has and the matrix product in its place has not."""
    sizes = list(t.shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


@contextlib.contextmanager
def count(x: Tensor | None = None, parameters: Iterable[Tensor] = ()) -> Iterator[Traffic]:
    """Count what runs within: Triton's kernels, under the interpreter, and PyTorch's operators.

    Args:
        x: the block's map, by whose size others are known.
        parameters: those of the block.
    """
    roles = Roles(None if x is None else x.numel(), frozenset(_shape(p) for p in parameters))
    traffic = Traffic()
    operators = _CountOperators(traffic, roles)
    with _count_kernels(traffic, roles, operators), operators:
        yield traffic


@contextlib.contextmanager
def count_kernels() -> Iterator[Traffic]:
    """Count Triton's kernels alone; every 4-D tensor is a map."""
    traffic = Traffic()
    with _count_kernels(traffic, Roles()):
        yield traffic


@contextlib.contextmanager
def _count_kernels(traffic: Traffic, roles: Roles, operators: _CountOperators | None = None) -> Iterator[None]:
    from triton.runtime.interpreter import InterpreterBuilder

    from benchmarks.counted.interpreter import patch_once_a_launch
    from triton_attn.ops import launch

    patch_once_a_launch()
    tensors: list[tuple[int, int, str]] = []  # first address, end, role
    parameters: dict[int, list[np.ndarray]] = defaultdict(list)  # addresses by the size of an element
    start = launch.start
    originals = {
        name: getattr(InterpreterBuilder, name)
        for name in ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")
    }

    def counted_start(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
        if 0 in grid:
            return
        tensors[:] = [
            (t.data_ptr(), t.untyped_storage().data_ptr() + t.untyped_storage().nbytes(), roles.of(t, name))
            for name, t in arguments.items()
            if isinstance(t, Tensor) and t.numel()
        ]
        traffic.launched(kernel.fn.__name__, [role for *_, role in tensors])
        # The interpreter may call operators of its own.
        with contextlib.nullcontext() if operators is None else mock.patch.object(operators, "paused", True):
            start(kernel, grid, device, **arguments)
        for size, addresses in parameters.items():
            distinct = np.unique(np.concatenate(addresses))
            traffic.moved["parameter"] += distinct.size * size
            traffic.sectors["parameter"] += np.unique(distinct // SECTOR).size * SECTOR
        parameters.clear()

    def note(pointers: Any, mask: Any = None, times: int = 1) -> None:
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        addresses = pointers.data
        if mask is not None:
            addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
        addresses = np.unique(addresses)
        if not addresses.size:
            return
        # Of tensors within one another the one that begins last.
        around = [each for each in tensors if each[0] <= addresses[0] and int(addresses[-1]) + size <= each[1]]
        if not around:
            raise RuntimeError(
                f"a kernel touches addresses {addresses[0]:#x} to {addresses[-1]:#x}, which lie in none of its tensors"
            )
        role = max(around)[2]
        if role == "parameter":
            parameters[size].append(addresses)
            return
        traffic.moved[role] += times * addresses.size * size
        traffic.sectors[role] += times * np.unique(addresses // SECTOR).size * SECTOR

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask)
        return originals["create_masked_load"](self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask)
        return originals["create_masked_store"](self, pointers, value, mask, *rest)

    def atomic_rmw(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, times=2)
        return originals["create_atomic_rmw"](self, operation, pointers, value, mask, *rest)

    def atomic_cas(self: Any, pointers: Any, *rest: Any) -> Any:
        note(pointers, times=2)
        return originals["create_atomic_cas"](self, pointers, *rest)

    with (
        mock.patch.object(launch, "start", counted_start),
        mock.patch.object(InterpreterBuilder, "create_masked_load", load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", store),
        mock.patch.object(InterpreterBuilder, "create_atomic_rmw", atomic_rmw),
        mock.patch.object(InterpreterBuilder, "create_atomic_cas", atomic_cas),
    ):
        yield


class Seeing(TorchDispatchMode):
    """Sees PyTorch's operators: of ours, and of composite ones, those that they call."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from triton_attn.ops.library import IMPLEMENTATIONS

        kwargs = kwargs or {}
        with self:
            if func in IMPLEMENTATIONS:
                return IMPLEMENTATIONS[func](*args, **kwargs)
            result = func.decompose(*args, **kwargs)  # below autograd composite operators come whole
        if result is NotImplemented:
            result = func(*args, **kwargs)
            self.see(func, args, kwargs, result)
        return result

    def see(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """An operator that was called, and what it returned."""
        raise NotImplementedError


class _CountOperators(Seeing):
    """Counts what operators move."""

    def __init__(self, traffic: Traffic, roles: Roles) -> None:
        super().__init__()
        self.traffic = traffic
        self.roles = roles
        self.paused = False

    def see(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        if self.paused or "empty" in name:
            return
        reads, writes = _operands(func, name, args, kwargs, result)
        if not writes:
            return
        self.traffic.launched(name, [self.roles.of(t) for t in (*reads, *writes)])
        for t in (*reads, *writes):
            size, role = _distinct_bytes(t), self.roles.of(t)
            self.traffic.moved[role] += size
            self.traffic.sectors[role] += -(-size // SECTOR) * SECTOR


def _operands(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """What an operator reads, and what it writes: nothing if it is a view."""
    reads, writes, seen = [], [], set()
    for i, argument in enumerate(func._schema.arguments):
        tensors = _tensors(args[i] if i < len(args) else kwargs.get(argument.name))
        seen |= {t.untyped_storage().data_ptr() for t in tensors}
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written:
            writes += tensors
        only_written = written and (argument.kwarg_only or name == "copy_")
        if name not in READ_NOTHING and not only_written:
            reads += tensors
    writes += [t for t in _tensors(result) if t.numel() and t.untyped_storage().data_ptr() not in seen]
    return reads, writes


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _distinct_bytes(t: Tensor) -> int:
    elements = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        elements *= 1 if stride == 0 else size
    return elements * t.itemsize
