"""The most that a run allocates at once, and freed memory that stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.timed.memory import peak_bytes
from tests import fresh

MB = 1_000_000
ROOT = Path(__file__).parents[2]


def test_known_allocations() -> None:
    def run() -> torch.Tensor:
        a = torch.ones(MB, dtype=torch.uint8)
        b = a + 1  # 2 MB
        del a
        c = torch.zeros(MB // 2, dtype=torch.uint8)  # 1.5 MB
        del c
        d = torch.ones(2 * MB, dtype=torch.uint8)  # 3 MB
        return b[:1] + d[:1]

    assert 3 * MB <= peak_bytes(run) < 3 * MB + 1000


def test_what_was_there_before_does_not_count() -> None:
    x = torch.ones(10 * MB, dtype=torch.uint8)
    assert peak_bytes(lambda: x.add_(1)) < 1000


def test_a_matrix_shows() -> None:
    q = torch.randn(1, 1000, 8)
    assert peak_bytes(lambda: torch.softmax(q @ q.transpose(1, 2), -1) @ q) >= 4 * MB


FAULTS = """
import resource
import torch
from benchmarks.timed.memory import freed_memory_kept

def faults(size):  # pages that the system had to give for five blocks, each freed again; first ones warm it up
    counts = []
    for _ in range(12):
        torch.ones(size, dtype=torch.uint8)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[-6]

with freed_memory_kept() as kept:
    within = faults(64_000_000)
print(kept, within, faults(256_000_000))
"""


def test_freed_memory_is_kept_and_later_no_more() -> None:
    # In a process of its own: to threads, as those that tests may run in, glibc gives blocks of that size otherwise.
    kept, within, outside = fresh.python(FAULTS, cwd=ROOT).stdout.split()
    if kept == "False":
        pytest.skip("the allocator is not glibc's")
    # By itself glibc keeps no block of more than 32 MB. The system gives pages of 4 KB or 2 MB.
    assert int(outside) >= 5 * 256 // 2 - 10
    assert int(within) < int(outside) / 16
