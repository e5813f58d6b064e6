"""Claims: judged by what was found, open where nothing was, and never by the interpreter's times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_blocks
from benchmarks.claims import ResultError, as_text, judge
from benchmarks.evidence import OPEN, PASS, SHORT, SO_FAR, Claim
from benchmarks.files import RESULTS
from benchmarks.measurement import ENDED, LATE
from tests.benchmarks import results


def judged(folder: Path) -> dict[str, Claim]:
    found = judge(folder)
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


def test_without_results_everything_is_open(tmp_path: Path) -> None:
    found = judged(tmp_path)
    assert {each.verdict for each in found.values()} == {OPEN}
    assert all(each.measured == "" for each in found.values())
    assert "se, forward + backward" in found
    assert "0 pass, 0 passes so far, 0 falls short" in as_text(list(found.values()))


def test_a_gpu_that_keeps_all_promises(tmp_path: Path) -> None:
    results.put(
        tmp_path,
        blocks=results.blocks(),
        calls=results.calls(),
        nonlocal_=results.nonlocals(),
        models=results.models(),
        autotune=results.autotune(),
    )
    (tmp_path / "nvidia-test-1" / "nonlocal_.json").rename(tmp_path / "nvidia-test-1" / "nonlocal.json")
    found = judged(tmp_path)
    measured = {name: each.verdict for name, each in found.items() if each.source.startswith("nvidia")}
    open_claims = {name for name, verdict in measured.items() if verdict == OPEN}
    taxes = (
        f"the tax of {name} in every block, {mode}" for name in ("eca", "cbam") for mode in ("training", "inference")
    )
    assert open_claims == {*taxes, "a call's host time"}
    assert {verdict for name, verdict in measured.items() if name not in open_claims} == {PASS}
    assert found["se, forward + backward"].measured.startswith("at least 1.50 times")
    assert found["apply kernels"].measured.startswith("at least 0.90 of a copy")
    assert found["the tax of se in every block, training"].measured == "5.0%, the least of the others 18.0% (timm)"


@pytest.mark.parametrize(
    ("suite", "content", "name", "measured"),
    [
        ("blocks", results.blocks(ours=1.2), "se, forward + backward", "at least 1.25 times (layer1, compile)"),
        ("blocks", results.blocks(share=0.84), "apply kernels", "at least 0.84 of a copy"),
        ("nonlocal", results.nonlocals(ours=1.3), "non-local attention, backward", "at least 0.92 times"),
        (
            "calls",
            results.calls(wall=1.1),
            "a call at batch 1 and 16, inference",
            "at most 1.10 times (se, layer1, batch",
        ),
        ("models", results.models(ours=125.0), "the tax of se in every block, inference", "12.5%"),
        ("autotune", results.autotune(rule=1.2), "configs by rule", "at most 1.20 times its time"),
    ],
)
def test_what_falls_short(suite: str, content: dict[str, Any], name: str, measured: str, tmp_path: Path) -> None:
    if suite == "models":  # compiled, ours pays less than all others: it is the less of both that counts
        for case in content["cases"].values():
            if case["compiled"]:
                case["tax"]["compile"]["median"] = 0.0625
    results.put(tmp_path, **{suite: content})
    found = judged(tmp_path)[name]
    assert found.verdict == SHORT
    assert found.measured.startswith(measured)
    assert found.source == f"nvidia-test-1/{suite}.json"


@pytest.mark.parametrize(
    ("change", "verdict", "measured"),
    [
        (lambda cases: cases.pop("se-layer3-training"), SO_FAR, "not measured: layer3"),
        (lambda cases: drop(cases["se-layer3-training"], "compile", LATE), SO_FAR, "not measured: layer3, compile"),
        (
            lambda cases: [drop(cases[f"se-{site}-training"], "compile", "no") for site in bench_blocks.GOAL_SITES],
            SO_FAR,
            "not measured: compile anywhere",
        ),
        (lambda cases: drop(cases["se-stem-training"], "eager", "OutOfMemoryError: "), PASS, "of 9"),
        (lambda cases: drop(cases["se-stem-training"], "ours", "WrongResult: off"), SHORT, "ours failed: stem: Wrong"),
        (lambda cases: drop(cases["se-stem-training"], "ours", ENDED), SO_FAR, "not measured: stem"),
        (
            lambda cases: [drop(cases[f"se-{site}-training"], "ours", "Boom: x") for site in bench_blocks.GOAL_SITES],
            SHORT,
            "ours failed: layer1: Boom: x; layer3: Boom: x; layer2: Boom: x and 2 more",
        ),
    ],
)
def test_a_claim_passes_by_all_that_it_names(change: Any, verdict: str, measured: str, tmp_path: Path) -> None:
    content = results.blocks()
    change(content["cases"])
    results.put(tmp_path, blocks=content)
    found = judged(tmp_path)["se, forward + backward"]
    assert (found.verdict, measured in found.measured) == (verdict, True), found


def drop(case: dict[str, Any], who: str, why: str) -> None:
    """Have a provider not timed."""
    del case["seconds"][who]
    case["ours_over"].pop(who, None)
    case["not_timed"][who] = why


def test_a_tax_without_compiled_networks_is_the_least_so_far(tmp_path: Path) -> None:
    content = results.models()
    content["cases"] = {name: case for name, case in content["cases"].items() if not case["compiled"]}
    results.put(tmp_path, models=content)
    found = judged(tmp_path)["the tax of se in every block, training"]
    assert found.verdict == SO_FAR
    assert found.measured == "5.0%, the least of the others 18.0% (timm); not measured: compile"
    drop(content["cases"]["training-"], "ours", "WrongResult: off")
    results.put(tmp_path, models=content)
    assert judged(tmp_path)["the tax of se in every block, training"].verdict == SHORT


def test_a_rival_that_a_cpu_has_no_memory_for(tmp_path: Path) -> None:
    content = json.loads((RESULTS / "cpu" / "nonlocal.json").read_text())
    case = next(iter(content["cases"].values()))
    drop(case, "eager", "RuntimeError: not enough memory")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "nonlocal.json").write_text(json.dumps(content))
    assert judged(tmp_path)["non-local attention on a CPU, memory"].verdict == PASS


def test_the_interpreters_times_are_no_speed(tmp_path: Path) -> None:
    results.put(tmp_path, blocks=results.blocks())
    (tmp_path / "nvidia-test-1").rename(tmp_path / "interpreter")
    assert judged(tmp_path)["se, forward + backward"].verdict == OPEN


def test_a_cpu(tmp_path: Path) -> None:
    case = results.timed(
        {"ours": 1.04e-3, "formula": 1e-3, "timm (its own formula)": 0.9e-3},
        block="cbam",
        site="layer1",
        layout="contiguous",
        direction="forward",
    )
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "blocks.json").write_text(json.dumps({**results.HEAD, "cases": {"one": case}}))
    found = judged(tmp_path)
    assert found["blocks on a CPU against the tutorial's plain formula"].verdict == PASS
    against = found["blocks on a CPU against timm's counterpart"]
    assert (against.verdict, against.measured[:17]) == (SHORT, "at most 1.16 time")


def test_what_is_counted() -> None:
    found = {each.name: each for each in judge(RESULTS) if each.kind == "counted"}
    assert found["se, traffic"].verdict == PASS
    assert found["registers"].verdict == PASS


def test_more_traffic_falls_short(tmp_path: Path) -> None:
    counted = json.loads((RESULTS / "traffic.json").read_text())
    for row in counted["rows"]:
        if row["case"] == "se" and row["layout"] == "contiguous":
            row["ours"]["backward"]["total"] += 1
    (tmp_path / "traffic.json").write_text(json.dumps(counted))
    found = judged(tmp_path)
    assert found["se, traffic"].verdict == SHORT
    assert found["eca, traffic"].verdict == PASS
    for row in counted["rows"]:
        row["ours"] = None if row["case"] == "eca" else row["ours"]
    (tmp_path / "traffic.json").write_text(json.dumps(counted))
    assert judged(tmp_path)["eca, traffic"].verdict == SHORT


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cases": 3}', '{"cases": {"a": {"seconds": {"ours": 1}}}}'])
def test_a_broken_file_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "nvidia-test-1").mkdir()
    (tmp_path / "nvidia-test-1" / "blocks.json").write_text(text)
    with pytest.raises(ResultError, match=r"nvidia-test-1/blocks\.json: expected a result file"):
        judge(tmp_path)
