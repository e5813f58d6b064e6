"""Timing launches within a run."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from benchmarks.timing import CpuClock, measure_launches

pytestmark = pytest.mark.interpreter


def test_launches_over_the_map() -> None:
    block, x = triton_attn.SEBlock(32), torch.randn(2, 32, 7, 7)

    def run() -> None:
        with torch.no_grad():
            block(x)

    launches = measure_launches(run, CpuClock(), 3, lambda t: 2 * t.numel() >= x.numel())
    over_map = [launch for launch in launches if launch.map_bytes]
    assert [launch.map_bytes for launch in over_map] == [x.nbytes, 2 * x.nbytes]
    assert all(len(launch.seconds) == 3 and min(launch.seconds) > 0 for launch in launches)
