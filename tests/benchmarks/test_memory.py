"""The most that a run allocates at once, and freed memory that stays."""

from __future__ import annotations

import pytest
import torch

from benchmarks.memory import freed_memory_kept, peak_bytes

MB = 1_000_000


def test_known_allocations() -> None:
    def run() -> torch.Tensor:
        a = torch.ones(MB, dtype=torch.uint8)
        b = a + 1  # 2 MB
        del a
        c = torch.zeros(MB // 2, dtype=torch.uint8)  # 1.5 MB
        del c
        d = torch.ones(2 * MB, dtype=torch.uint8)  # 3 MB
        return b[:1] + d[:1]

    assert 3 * MB <= peak_bytes(run, torch.device("cpu")) < 3 * MB + 1000


def test_what_was_there_before_does_not_count() -> None:
    x = torch.ones(10 * MB, dtype=torch.uint8)
    assert peak_bytes(lambda: x.add_(1), torch.device("cpu")) < 1000


def test_a_matrix_shows() -> None:
    q = torch.randn(1, 1000, 8)
    assert peak_bytes(lambda: torch.softmax(q @ q.transpose(1, 2), -1) @ q, torch.device("cpu")) >= 4 * MB


def faults_of_allocations() -> int:
    """Pages that the system had to give for blocks that are freed again each time, the first of them not counted."""
    import resource

    counts = []
    for _ in range(6):
        torch.ones(64 * MB, dtype=torch.uint8)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[0]


def test_freed_memory_is_kept_and_in_the_end_given_back() -> None:
    with freed_memory_kept() as kept:
        if not kept:
            pytest.skip("the allocator is not glibc's")
        within = faults_of_allocations()
    # glibc never keeps blocks of that size by itself. The system gives pages of 4 KB or 2 MB.
    outside = faults_of_allocations()
    assert outside >= 5 * 64 // 2 - 5
    assert within < outside / 4
