"""The occupancy bound against numbers worked out by hand, and by NVIDIA's calculator where it is known for them."""

from __future__ import annotations

import pytest

from benchmarks.counted.occupancy import CHIPS, SHARED_LIMIT, occupancy, resident_warps


@pytest.mark.parametrize(
    ("target", "num_warps", "registers", "shared", "warps"),
    [
        # 65536 registers / (32 · 32) = 64 warps: all of them.
        ("sm_90", 4, 32, 0, 64),
        ("sm_90", 8, 64, 0, 32),
        # 65 registers become 72: 7 warps on each of 4 partitions, 28 in all, hence 3 programs of 8.
        ("sm_90", 8, 65, 0, 24),
        # 255 become 256: 2 warps to a partition.
        ("sm_80", 4, 255, 0, 8),
        ("sm_80", 16, 255, 0, 0),
        # 16 warps of 80 registers: 24 warps would fit, but only whole programs do.
        ("sm_90", 16, 76, 0, 16),
        # One warp each: 32 programs at most.
        ("sm_100", 1, 16, 0, 32),
        # 74 KB and 1 KB reserved: 3 programs in 228 KB, 2 in 164 KB.
        ("sm_90", 4, 32, 74 * 1024, 12),
        ("sm_80", 4, 32, 74 * 1024, 8),
        # The most that a program may have, and a byte more.
        ("sm_90", 8, 64, 227 * 1024, 8),
        ("sm_90", 8, 64, 227 * 1024 + 1, 0),
        # AMD: 512 / 64 = 8 wavefronts on each of 4 SIMDs; 512 / 136 = 3.
        ("gfx942", 4, 64, 0, 32),
        ("gfx942", 4, 129, 0, 12),
        ("gfx942", 4, 64, 16 * 1024 + 1, 12),
        ("gfx942", 1, 64, 0, 16),
    ],
)
def test_resident_warps(target: str, num_warps: int, registers: int, shared: int, warps: int) -> None:
    assert resident_warps(target, num_warps, registers, shared) == warps
    assert occupancy(target, num_warps, registers, shared) == warps / CHIPS[target].warps


def test_limits_of_shared_memory() -> None:
    assert SHARED_LIMIT == {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
