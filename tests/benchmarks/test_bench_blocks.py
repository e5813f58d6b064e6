"""The benchmarks: fair, checked before they are timed, and usable as pytest-benchmark's are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench_blocks import choose
from benchmarks.providers import FORWARD, PROVIDERS, TRAINING, Case, Reference, Setup, WrongResult
from benchmarks.timing import WARM_UP, CpuClock, Replay, measure, quartiles

ROOT = Path(__file__).parents[2]
CASE = Case("se", (3, 32, 7, 7), "float32", "channels_last", TRAINING)
CPU = torch.device("cpu")


def run_pytest(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_session(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    tiny = ("benchmarks/bench_blocks.py", "--size", "tiny", "--rounds", "3", "--results", tmp_path)
    ran = run_pytest(*tiny, "-k", "(se or cbam) and contiguous", "--benchmark-json", report)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    file = tmp_path / "cpu" / "blocks.json"
    found = json.loads(file.read_text())
    assert found["versions"]["torch"] == torch.__version__
    assert sorted(found["cases"]) == [
        f"{block}-2x32x7x7-float32-contiguous-{direction}"
        for block in ("cbam", "se")
        for direction in (FORWARD, TRAINING)
    ]
    seconds = found["cases"]["se-2x32x7x7-float32-contiguous-forward"]["seconds"]
    assert list(seconds) == ["eager", "timm", "copy"]
    for each in seconds.values():
        assert 0 < each["q1"] <= each["median"] <= each["q3"]
    assert set(found["cases"]["cbam-2x32x7x7-float32-contiguous-training"]["seconds"]) == {
        "eager",
        "timm (its own formula)",
    }
    # What pytest-benchmark reports is what was measured.
    medians = {
        (each["group"], each["extra_info"]["provider"]): each["stats"]["median"]
        for each in json.loads(report.read_text())["benchmarks"]
    }
    for name, case in found["cases"].items():
        for provider, each in case["seconds"].items():
            assert medians[name, provider] == pytest.approx(each["median"])

    # A later session adds its cases.
    ran = run_pytest(*tiny, "-k", "eca and contiguous and forward and eager")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    later = json.loads(file.read_text())["cases"]
    assert set(later) == {*found["cases"], "eca-2x32x7x7-float32-contiguous-forward"}
    assert [path.name for path in file.parent.iterdir()] == ["blocks.json"]


def test_benchmarks_are_collected_where_they_are_asked_for_only() -> None:
    asked = run_pytest("--collect-only", "--size", "tiny", "benchmarks/").stdout
    assert "bench_blocks.py::test_block[se-tiny-float32-contiguous-forward-eager]" in asked
    assert "bench_blocks" not in run_pytest("--collect-only", "-k", "test_block").stdout


def test_on_a_gpu_every_block_meets_every_provider() -> None:
    chosen = list(choose("full", on_gpu=True))
    of_se = {who for site, case, who in chosen if (case.block, site, case.direction) == ("se", "stem", FORWARD)}
    assert of_se == set(PROVIDERS)
    assert {case.dtype for _, case, _ in chosen} == {"bfloat16", "float32"}
    assert {case.shape[0] for _, case, _ in chosen} == {64}
    assert len({str(case) for _, case, _ in chosen}) == 8 * 5 * 2 * 2 * 2


def test_providers_compute_the_same() -> None:
    for block in ("se", "eca", "cbam"):
        setup = Setup.of(Case(block, *list(vars(CASE).values())[1:]), CPU)
        reference = Reference.of(setup)
        result = setup.run(PROVIDERS["timm"](setup))()
        assert len(result) == 2
        reference.check(result, same_formula=block != "cbam")
        if block == "cbam":
            with pytest.raises(WrongResult, match="is off by"):
                reference.check(result)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda y, dx: (y * 1.001, dx), "the output is off by"),
        (lambda y, dx: (y, dx + 1e-3), "the gradient is off by"),
        (lambda y, dx: (y.double(), dx), "the output is .* torch.float64"),
        (lambda y, dx: (y[:2], dx), "the output is "),
        (lambda y, dx: (y / 0, dx), "the output is not finite"),
    ],
)
def test_a_wrong_result_is_not_timed(spoil: Any, message: str) -> None:
    setup = Setup.of(CASE, CPU)
    reference = Reference.of(setup)
    right = setup.run(PROVIDERS["eager"](setup))()
    reference.check(right)
    with pytest.raises(WrongResult, match=message):
        reference.check(spoil(*right))


def test_every_provider_gets_the_same_inputs() -> None:
    one, other = Setup.of(CASE, CPU), Setup.of(CASE, CPU)
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.grad, other.grad)
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert one.x.is_contiguous(memory_format=torch.channels_last)


def test_runs_take_turns() -> None:
    class Ticks(CpuClock):
        now = 0.0

        def stamp(self) -> float:
            return self.now

    clock, order = Ticks(), []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds

    runs = {"a": lambda: run("a", 1.0), "b": lambda: run("b", 2.0), "c": lambda: run("c", 3.0)}
    samples = measure(runs, clock, 4)
    assert "".join(order[3 * WARM_UP :]) == "abcbcacababc"
    assert samples == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [3.0] * 4}


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert quartiles([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}


def test_a_replay_tells_differences() -> None:
    replay = Replay()
    replay.load([0.5, 0.25])
    assert [-replay() + replay() for _ in range(2)] == [0.5, 0.25]
