"""The most that a run allocates at once."""

from __future__ import annotations

import torch

from benchmarks.counted.memory import peak_bytes

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

    assert 3 * MB <= peak_bytes(run) < 3 * MB + 1000


def test_what_was_there_before_does_not_count() -> None:
    x = torch.ones(10 * MB, dtype=torch.uint8)
    assert peak_bytes(lambda: x.add_(1)) < 1000


def test_a_matrix_shows() -> None:
    q = torch.randn(1, 1000, 8)
    assert peak_bytes(lambda: torch.softmax(q @ q.transpose(1, 2), -1) @ q) >= 4 * MB
