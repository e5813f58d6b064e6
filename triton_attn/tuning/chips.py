"""What a config must know of the GPU that it is for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Chip:
    """What a launch must know of a GPU: the shared memory that a program may have, in bytes, and whose it is."""

    shared: int
    amd: bool = False


CHIPS = {
    "sm_80": Chip(163 * 1024),
    "sm_90": Chip(227 * 1024),
    "sm_100": Chip(227 * 1024),
    "gfx942": Chip(64 * 1024, amd=True),
}
"""What the tiles were chosen on, by the compiler's names."""
_assumed: Chip | None = None


@contextlib.contextmanager
def assume(chip: Chip) -> Iterator[None]:
    """Within this, launches are for ``chip``, whatever device they are on: for compiling without a GPU."""
    global _assumed
    outer, _assumed = _assumed, chip
    try:
        yield
    finally:
        _assumed = outer


def chip_of(device: torch.device) -> Chip:
    """The chip that ``device`` is; asked for at a launch, never at import."""
    if _assumed is not None:
        return _assumed
    # A tensor on no GPU is being looked at, or the interpreter's.
    return _queried(device) if device.type == "cuda" else CHIPS["sm_80"]


@cache
def _queried(device: torch.device) -> Chip:
    if torch.version.hip is not None:
        return Chip(64 * 1024, amd=True)
    return Chip(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)  # type: ignore[attr-defined]


def precision(dtype: torch.dtype, chip: Chip) -> str:
    """How float32 factors are multiplied: as ``torch.get_float32_matmul_precision()`` says, for what it says so.

    "highest" is three passes of tf32, which keep 21 bits of every factor, on the tensor cores; AMD's have no such mode.
    """
    if dtype != torch.float32:
        return "ieee"  # says nothing about factors of 16 bits
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee" if chip.amd else "tf32x3"
