"""How many warps of a kernel a multiprocessor can hold at once: the bound that registers, shared memory and warps set.

The numbers of NVIDIA's chips are those of the CUDA C++ Programming Guide, "Compute Capabilities" (warps, programs,
registers and shared memory per multiprocessor, 1 KB reserved for every program), and of the occupancy calculator that
comes with CUDA (cuda_occupancy.h: units of allocation). Those of AMD's are in "AMD Instinct MI300 Instruction Set
Architecture" (512 vector registers per lane, 64 KB of LDS) and LLVM's "User Guide for AMDGPU Backend" (units, 8
wavefronts on each of the 4 SIMDs, 16 work groups of several wavefronts).
"""

from __future__ import annotations

from dataclasses import dataclass

PARTITIONS = 4  # of a multiprocessor (SIMDs of a compute unit): a warp stays on one
REGISTERS = 512  # per lane of a partition: 16384 / 32 lanes on NVIDIA
REGISTER_UNIT = 8  # registers per lane are allotted in multiples of this


@dataclass(frozen=True)
class Chip:
    """What one multiprocessor (a compute unit on AMD) holds at once; bytes of shared memory."""

    warps: int
    programs: int
    shared: int
    shared_unit: int
    reserved: int
    """Shared memory that every program takes besides its own."""


CHIPS = {
    "sm_80": Chip(warps=64, programs=32, shared=164 * 1024, shared_unit=128, reserved=1024),
    "sm_90": Chip(warps=64, programs=32, shared=228 * 1024, shared_unit=128, reserved=1024),
    "sm_100": Chip(warps=64, programs=32, shared=228 * 1024, shared_unit=128, reserved=1024),
    "gfx942": Chip(warps=32, programs=16, shared=64 * 1024, shared_unit=512, reserved=0),
}
# What one program may have of it.
SHARED_LIMIT = {target: chip.shared - chip.reserved for target, chip in CHIPS.items()}


def resident_warps(target: str, num_warps: int, registers: int, shared: int) -> int:
    """The warps that a multiprocessor holds of programs with so many warps, registers per thread and shared memory."""
    chip = CHIPS[target]
    warps = chip.warps
    if registers:
        warps = min(warps, PARTITIONS * (REGISTERS // _round_up(registers, REGISTER_UNIT)))
    programs = min(warps // num_warps, chip.programs)
    if taken := _round_up(shared + chip.reserved, chip.shared_unit):
        programs = min(programs, chip.shared // taken)
    return programs * num_warps


def occupancy(target: str, num_warps: int, registers: int, shared: int) -> float:
    """The same, as a share of the warps that the chip could hold."""
    return resident_warps(target, num_warps, registers, shared) / CHIPS[target].warps


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
