"""Counting what a block moves and launches: kernels under Triton's interpreter, and PyTorch's own operators.

Bytes are those of the distinct addresses that each load and store of a tile asks for; sectors are the 32-byte sectors
that these lie in, which is what the memory system really moves. Parameters count once a launch, however often tiles
re-read them: they stay in a cache.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SECTOR = 32
ROLES = ("map", "mask", "vector", "parameter")


@dataclass
class Traffic:
    """Bytes and sectors (in bytes) by role, and launches by kernel."""

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


@contextlib.contextmanager
def count_kernels() -> Iterator[Traffic]:
    """Count the Triton kernels that run within, under the interpreter."""
    from triton.runtime.interpreter import InterpreterBuilder

    from triton_attn.ops import launch

    traffic = Traffic()
    tensors: list[tuple[int, int, str]] = []
    parameters: dict[str, list[np.ndarray]] = defaultdict(list)
    start = launch.start
    masked_load, masked_store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_start(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
        if 0 in grid:
            return
        name = kernel.fn.__name__
        tensors[:] = [
            (
                t.data_ptr(),
                t.data_ptr() + int(t.untyped_storage().nbytes()) - int(t.storage_offset()) * t.itemsize,
                role(key, t),
            )
            for key, t in arguments.items()
            if isinstance(t, torch.Tensor) and t.numel()
        ]
        traffic.launches[name] += 1
        if any(role == "map" for *_, role in tensors):
            traffic.map_launches[name] += 1
        start(kernel, grid, device, **arguments)
        for kind, addresses in parameters.items():
            distinct = np.unique(np.concatenate(addresses))
            traffic.moved["parameter"] += distinct.size * int(kind)
            traffic.sectors["parameter"] += np.unique(distinct // SECTOR).size * SECTOR
        parameters.clear()

    def count(pointers: Any, mask: Any) -> None:
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        addresses = np.unique(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)])
        if not addresses.size:
            return
        kind = next((kind for first, end, kind in tensors if first <= addresses[0] < end), None)
        if kind is None:
            raise RuntimeError(f"a kernel touches address {addresses[0]:#x}, which lies in none of its tensors")
        if kind == "parameter":
            parameters[str(size)].append(addresses)
            return
        traffic.moved[kind] += addresses.size * size
        traffic.sectors[kind] += np.unique(addresses // SECTOR).size * SECTOR

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        count(pointers, mask)
        return masked_load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        count(pointers, mask)
        return masked_store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(launch, "start", counted_start),
        mock.patch.object(InterpreterBuilder, "create_masked_load", counted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counted_store),
    ):
        yield traffic


def role(argument: str, tensor: torch.Tensor) -> str:
    """What a kernel's tensor is, by its argument's name and its shape."""
    if "weight" in argument or "bias" in argument:
        return "parameter"
    if tensor.dtype == torch.uint8:
        return "mask"
    return "map" if tensor.dim() == 4 else "vector"


class CountOperators(TorchDispatchMode):
    """Counts PyTorch's operators: each reads its inputs and writes its outputs once, and views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr() for t in inputs}
        writes = func._schema.is_mutable
        if writes or any(t.untyped_storage().data_ptr() not in storages for t in outputs):
            self.launches += 1
            self.moved += sum(_distinct_bytes(t) for t in (*inputs, *outputs))
        return result


def _distinct_bytes(t: torch.Tensor) -> int:
    elements = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        elements *= 1 if stride == 0 else size
    return elements * t.itemsize
