"""Kernels of ours with one barrier left out: what the lane finds then."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

import triton_attn

from .configurations import LAYOUTS, ORDERS, Configuration, results
from .hook import Executor
from .program import Order, Program
from .runtime import Finding

BLOCKS = ("se", "eca", "cbam", "coordinate", "gate", "pixel", "nonlocal")


@dataclass(frozen=True)
class Mutant:
    """A launch without a barrier.

    Attributes:
        kernel, barrier: which, of how many the kernel has.
        is_found: whether it had findings.
        differs: whether a bit of its results is another, in the usual order or backwards.
    """

    kernel: str
    barrier: int
    barriers: int
    is_found: bool
    differs: bool


def mutants(name: str, every: int = 1) -> list[Mutant]:
    """Of all launches of a block's training step, in both layouts, each barrier left out in turn, or one of so many."""
    made: list[Mutant] = []
    counted = count()

    def run(program: Program, grid: tuple[int, ...], values: list[Any]) -> tuple[Finding, ...]:
        before = _copies(values)
        findings = program.run(grid, values)
        for barrier in range(program.barriers):
            if next(counted) % every:
                continue
            mutant, found, differs = program.without(barrier), False, False
            for order in (Order(), ORDERS[0]):
                copies = _copies(before)
                found |= bool(mutant.run(grid, copies, order))
                differs |= not all(map(_same, copies, values))
            made.append(Mutant(program.kernel, barrier, program.barriers, found, differs))
        return findings

    for layout in LAYOUTS:
        executor = Executor(run=run)
        with executor.installed(), triton_attn.use_backend("triton"):
            results(Configuration(name, (2, 32, 5, 7), torch.bfloat16, layout, with_shortcut=True))
    return made


def _copies(values: list[Any]) -> list[Any]:
    """Of tensors, with their strides and what lies between their elements; those of one storage share one again."""
    found, storages = [], {}
    for value in values:
        if isinstance(value, torch.Tensor):
            storage = value.detach().untyped_storage()
            copy = storages.setdefault(storage.data_ptr(), storage.clone())
            value = torch.empty(0, dtype=value.dtype).set_(copy, value.storage_offset(), value.shape, value.stride())
        found.append(value)
    return found


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return True
    return torch.equal(_bytes(a), _bytes(b.detach()))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """All of a storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
