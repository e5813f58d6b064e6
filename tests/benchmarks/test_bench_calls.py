"""The suite of calls: ours beside eager PyTorch at small batches, by the wall's clock and the GPU's."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import triton_attn
from benchmarks import bench_calls, timing
from benchmarks.bench_calls import cases, prepare, providers, wall_time
from benchmarks.providers import Case
from benchmarks.timing import WallClock, measure


def test_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = list(cases("goal"))
    assert len({str(case) for case in goal}) == len(goal) == 2 * 2 * 8 * 2
    assert {case.shape[0] for case in goal} == {1, 16}
    assert {case.block for case in goal} == set(triton_attn.list_attention())
    assert list(cases("small")) == []  # on a CPU the two times are one
    assert [*providers(goal[0])] == ["ours"]
    monkeypatch.setattr(bench_calls, "on_gpu", lambda: True)
    assert [*providers(goal[0])] == ["ours", "eager"]


def test_both_times_are_noted() -> None:
    case = Case("se", "tiny", (2, 32, 7, 7), "float32", "channels_last", "training")
    prepared = prepare(case, ["ours", "eager"])
    runs = {who: make() for who, make in prepared.makers.items()}
    wall = prepared.extra(runs, {"ours": [0.1] * 3, "eager": [0.2] * 3})["wall"]
    assert wall["seconds"].keys() == {"ours", "eager"}
    assert wall["ours_over"].keys() == {"eager"}
    assert wall_time({}, {})["wall"] == {"seconds": {}, "ours_over": {}}


def test_a_wall_clock_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now, queued = [0.0], [0.0]

    def synchronize(_: Any) -> None:
        now[0] += queued[0]
        queued[0] = 0.0

    def run() -> None:
        now[0] += 2.0  # Python's time
        queued[0] += 3.0  # the GPU's

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert timing.time is time
    queued[0] = 100.0  # what was begun before is not in it
    assert measure({"ours": run}, WallClock(torch.device("cuda")), 2) == {"ours": [5.0, 5.0]}
