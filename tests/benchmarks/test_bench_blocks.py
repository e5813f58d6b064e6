"""The suite of blocks: fair, checked before it is timed, and usable as pytest-benchmark's are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import triton_attn
from benchmarks import bench_blocks, suite
from benchmarks.formulas import FORMULAS
from benchmarks.providers import (
    BACKWARD,
    FORWARD,
    OWN_FORMULA,
    PROVIDERS,
    TRAINING,
    Case,
    Reference,
    Setup,
    WrongResult,
)
from triton_attn.reference.registry import BLOCKS as PLAIN

ROOT = Path(__file__).parents[2]
CASE = Case("se", "tiny", (3, 32, 7, 7), "float32", "channels_last", TRAINING)
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
    ran = run_pytest(*tiny, "-k", "se or cbam", "--benchmark-json", report)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    file = tmp_path / "cpu" / "blocks.json"
    found = json.loads(file.read_text())
    assert found["suite"] == "blocks"
    assert found["versions"]["torch"] == torch.__version__
    assert sorted(found["cases"]) == [
        f"{block}-tiny-2x32x7x7-float32-channels_last-{direction}"
        for block in ("cbam", "se")
        for direction in (TRAINING,)
    ]
    case = found["cases"]["se-tiny-2x32x7x7-float32-channels_last-training"]
    assert list(case["seconds"]) == ["ours", "formula", "timm", "copy"]
    for each in (*case["seconds"].values(), *case["ours_over"].values()):
        assert 0 < each["q1"] <= each["median"] <= each["q3"]
    assert list(case["ours_over"]) == ["formula", "timm", "copy"]
    assert case["peak_bytes"]["ours"] >= 2 * 32 * 7 * 7 * 4
    assert (case["site"], case["rounds"], case["not_timed"]) == ("tiny", 3, {})
    own = found["cases"]["cbam-tiny-2x32x7x7-float32-channels_last-training"]
    assert OWN_FORMULA in own["seconds"]
    # What pytest-benchmark reports is what was measured.
    medians = {
        (each["group"], each["extra_info"]["provider"]): each["stats"]["median"]
        for each in json.loads(report.read_text())["benchmarks"]
    }
    for name, case in found["cases"].items():
        for provider, each in case["seconds"].items():
            assert medians[name, provider] == pytest.approx(each["median"])

    # A later session adds its cases.
    ran = run_pytest(*tiny, "-k", "eca and (ours or timm)")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    later = json.loads(file.read_text())["cases"]
    assert set(later) == {*found["cases"], "eca-tiny-2x32x7x7-float32-channels_last-training"}
    assert [path.name for path in file.parent.iterdir()] == ["blocks.json"]


def test_benchmarks_are_collected_where_they_are_asked_for_only() -> None:
    asked = run_pytest("--collect-only", "--size", "tiny", "benchmarks/").stdout
    for expected in (
        "bench_blocks.py::test_block[se-tiny-2x32x7x7-float32-channels_last-training-ours]",
        "bench_nonlocal.py::test_attention[layer3-64-batch1-float32-backward-eager]",
        "bench_models.py::test_model[resnet18-se-layer4-2x32-float32-channels_last-training-plain]",
        "bench_autotune.py::test_launches[eca-tiny",
    ):
        assert expected in asked
    assert "bench_blocks" not in run_pytest("--collect-only", "-k", "test_block").stdout


def test_on_a_gpu_every_block_meets_every_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_blocks, "on_gpu", lambda: True)
    cases = list(bench_blocks.cases("full"))
    assert len({str(case) for case in cases}) == len(cases) == 8 * 5 * 2 * 2 * 3
    assert {case.shape[0] for case in cases} == {64}
    assert set(bench_blocks.providers(replace(CASE, direction=FORWARD))) == set(PROVIDERS)
    assert set(bench_blocks.providers(replace(CASE, block="gate", direction=BACKWARD))) == {*PROVIDERS} - {
        "timm",
        "copy",
    }


def test_what_the_claims_are_about_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_blocks, "on_gpu", lambda: True)
    cases = list(bench_blocks.cases("goal"))
    assert {(case.dtype, case.layout) for case in cases} == {("bfloat16", "channels_last")}
    assert {case.block for case in cases} == set(triton_attn.list_attention())
    assert [case.direction for case in cases] == 40 * [TRAINING] + 40 * [FORWARD] + 40 * [BACKWARD]
    assert {str(case) for case in cases} <= {str(case) for case in bench_blocks.cases("full")}
    assert set(bench_blocks.providers(cases[0], goal=True)) == {"ours", "eager", "compile", "timm", "copy"}


@pytest.mark.parametrize("name", triton_attn.list_attention())
def test_the_tutorials_formula_is_the_blocks(name: str) -> None:
    torch.manual_seed(0)
    plain, formula = PLAIN[name](32).double(), FORMULAS[name](32).double()
    formula.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, 6, 5, dtype=torch.float64, requires_grad=True)
    x.data[0, 0, :2, :2] = 9.0  # a tie
    grad = torch.randn_like(x)
    results = []
    for block in (plain, formula):
        y = block(x)
        results.append([y, *torch.autograd.grad(y, [x, *block.parameters()], grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_providers_compute_the_same() -> None:
    for block in ("se", "eca", "cbam"):
        setup = Setup.of(replace(CASE, block=block), CPU)
        reference = Reference.of(setup)
        for provider in ("ours", "formula", "timm"):
            result = setup.result(PROVIDERS[provider](setup))
            assert len(result) == 2
            own = (block, provider) == ("cbam", "timm")
            reference.check(result, same_formula=not own)
            if own:
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
def test_a_wrong_result_is_not_timed(spoil: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setup = Setup.of(CASE, CPU)
    reference = Reference.of(setup)
    right = setup.result(PROVIDERS["eager"](setup))
    reference.check(right)
    with pytest.raises(WrongResult, match=message):
        reference.check(spoil(*right))

    # And the others are timed all the same.
    result = Setup.result
    monkeypatch.setattr(
        Setup,
        "result",
        lambda self, block: spoil(*result(self, block)) if isinstance(block, FORMULAS["se"]) else result(self, block),
    )
    session = suite.Session("blocks", bench_blocks.prepare, tmp_path, rounds=2)
    record, samples = session.samples_of(CASE, ["ours", "formula"])
    assert list(samples) == ["ours"]
    assert record["not_timed"]["formula"].startswith("WrongResult: the ")


def test_every_provider_gets_the_same_inputs() -> None:
    one, other = Setup.of(CASE, CPU), Setup.of(CASE, CPU)
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.grad, other.grad)
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert one.x.is_contiguous(memory_format=torch.channels_last)


def test_the_backward_by_itself() -> None:
    setup = Setup.of(replace(CASE, direction=BACKWARD), CPU)
    block = PROVIDERS["ours"](setup)
    run = setup.run(block)
    for gradients in (run(), run()):  # of a graph that is kept
        assert torch.equal(gradients[0], setup.result(block)[1])
