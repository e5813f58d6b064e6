"""What a config must know of the GPU that it is for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache

import torch

from ..per_thread import PerThread


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
_assumed: PerThread[Chip] = PerThread()


def assume(chip: Chip) -> contextlib.AbstractContextManager[object]:
    """Within this, this thread's launches are for ``chip``, whatever device they are on: to compile without a GPU."""
    return _assumed.set_and_backwards(chip)


def is_assumed() -> bool:
    """Whether that is so here."""
    return _assumed.value is not None


def chip_of(device: torch.device) -> Chip:
    """The chip that ``device`` is; asked for at a launch, never at import."""
    if (assumed := _assumed.value) is not None:
        return assumed
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
