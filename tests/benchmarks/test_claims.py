"""Claims are judged by files alone, by their worst value, and pass by all that they name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.files import LATE, ResultError
from benchmarks.timed import cases
from benchmarks.written import claims
from benchmarks.written.claims import OPEN, PASS, SHORT, SO_FAR, Verdict, judge


def case(fields: Any, ratios: dict[str, float], refused: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A record, of ours' ratios to others, and the case's name."""
    over = {who: {"median": ratio} for who, ratio in ratios.items()}
    found = {"seconds": {"ours": {"median": 1.0}}, "ours_over": over, "not_timed": refused or {}, "peak_bytes": {}}
    return {"named": str(fields), **asdict(fields), **found, **more}


def judged(tmp_path: Path, suite: str, records: Any, device: str = "gpu", **more: Any) -> dict[str, Verdict]:
    path = tmp_path / device / f"{suite}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cases": {each["named"]: each for each in records}, **more}))
    return {each.name: each for each in judge(tmp_path)}


def se(change: Any = None, **ratios: float) -> list[dict[str, Any]]:
    """SE at all sites."""
    wanted = (each for each in cases.blocks("goal") if (each.block, each.direction) == ("se", cases.TRAINING))
    found = {each.site: case(each, ratios or {"eager": 0.3, "compile": 0.5}) for each in wanted}
    if change:
        change(found)
    return list(found.values())


def refuse(who: str, why: str, *records: dict[str, Any]) -> None:
    """Have a provider not timed."""
    for record in records:
        record["not_timed"][who] = why
        record["ours_over"].pop(who, None)


def test_without_results_everything_is_open(tmp_path: Path) -> None:
    found = judge(tmp_path)
    assert {each.verdict for each in found} == {OPEN}
    assert {each.source.partition("/")[0] for each in found if "GPU" in each.source} == {"<GPU>"}
    assert len(found) == len(claims.CLAIMS) == len({each.name for each in claims.CLAIMS})


@pytest.mark.parametrize(
    ("change", "verdict", "found"),
    [
        (None, PASS, "at least 2.00 times (layer1, compile), median 2.67, of 10"),
        (lambda sites: sites["stem"]["ours_over"].update(eager={"median": 0.8}), SHORT, "1.25 times (stem, eager)"),
        (lambda sites: sites.pop("layer3"), SO_FAR, "not measured: layer3"),
        (lambda sites: refuse("compile", LATE, sites["layer3"]), SO_FAR, "not measured: layer3, compile"),
        (lambda sites: refuse("compile", "no", *sites.values()), SO_FAR, "compile anywhere"),
        (lambda sites: refuse("eager", "OutOfMemoryError: ", sites["stem"]), PASS, "of 9"),
        (lambda sites: refuse("ours", "WrongResult: off", sites["stem"]), SHORT, "ours failed: stem: WrongResult: off"),
        (lambda sites: refuse("ours", LATE, sites["stem"]), SO_FAR, "not measured: stem"),
        (lambda sites: refuse("ours", "B", *sites.values()), SHORT, ": layer1: B; layer3: B; layer2: B and 2 more"),
    ],
)
def test_a_claim_passes_by_all_that_it_names(change: Any, verdict: str, found: str, tmp_path: Path) -> None:
    about = judged(tmp_path, "blocks", se(change))["se, both ways"]
    assert (about.verdict, found in about.found) == (verdict, True), about


def test_every_gpu_is_judged_and_the_interpreter_is_none(tmp_path: Path) -> None:
    assert judged(tmp_path, "blocks", se(), "interpreter")["se, both ways"].verdict == OPEN
    judged(tmp_path, "blocks", se(), "one")
    judged(tmp_path, "blocks", se(eager=0.9), "two")
    found = {each.source: each.verdict for each in judge(tmp_path) if each.name == "se, both ways"}
    assert found == {"one/blocks.json": PASS, "two/blocks.json": SHORT}


def test_other_claims_about_a_gpu(tmp_path: Path) -> None:
    shares = [{"kernel": "apply_gate_fwd_kernel", "share_of_copy": share} for share in (0.9, 0.8)]
    shares += [{"kernel": "squeeze_fwd_kernel", "share_of_copy": 0.1}]
    record = {**se()[0], "launches": shares}
    assert judged(tmp_path, "blocks", [record])["apply kernels"].found.startswith("at least 0.80 of a copy (se, layer1")
    for suite, ratio in (("calls", 0.9), ("nonlocal", 0.7)):
        records = [case(each, dict.fromkeys(claims.SDPA.split(), ratio)) for each in cases.SUITES[suite]("goal")]
        found = judged(tmp_path, suite, records)
    assert found["training at batch 1 and 16"].verdict == PASS
    assert found["non-local, backward"].verdict == PASS
    entry = {"kernel": "k", "dtype": "fp16", "layout": "contiguous", "channels": [8], "positions": 49, "config": {}}
    entries = [{**entry, "rule_seconds": 1.2, "seconds": 1}]
    rule = judged(tmp_path, "tuning", [], entries=entries)["configs by rule"]
    assert (rule.verdict, rule.found[:29]) == (SHORT, "at most 1.20 times its time (")


def test_a_tax_is_less_than_each_others(tmp_path: Path) -> None:
    def network(compiled: bool, **tax: float) -> dict[str, Any]:
        fields = next(each for each in cases.models("goal") if each.attention == "se" and each.compiled == compiled)
        paid = {who.replace("_", "-"): {"median": each} for who, each in tax.items()}
        return case(fields, dict.fromkeys(paid, 0.9), tax=paid)

    name = "tax of se in every block, training"
    eager = network(False, ours=0.05, eager=0.2, timm=0.18)
    found = judged(tmp_path, "models", [eager])[name]
    assert (found.verdict, found.found[:52]) == (SO_FAR, "at most -13.00 points beside another's (ours, timm),")
    assert found.found.endswith("not measured: ours-compile")
    for ours, verdict in ((0.1, PASS), (0.3, SHORT)):
        records = [eager, network(True, ours_compile=ours, compile=0.2)]
        assert judged(tmp_path, "models", records)[name].verdict == verdict


def test_a_cpu(tmp_path: Path) -> None:
    block = next(iter(cases.blocks("small")))
    found = judged(tmp_path, "blocks", [case(block, {"formula": 1.04, "timm (its own formula)": 1.16})], "cpu")
    assert found["blocks on a CPU, the tutorial's formula"].verdict == SO_FAR  # the others are missing
    against = found["blocks on a CPU, timm's counterpart"]
    assert (against.verdict, against.found[:17]) == (SHORT, "at most 1.16 time")
    small, *rest = cases.nonlocals("small")
    records = [case(each, {"eager": 1.0}, peak_bytes={"ours": 1, "eager": 2}) for each in rest]
    records += [case(small, {"sdpa": 1.0}, {"eager": "RuntimeError: not enough memory"}, peak_bytes={"ours": 9})]
    assert judged(tmp_path, "nonlocal", records, "cpu")["non-local on a CPU, memory"].verdict == PASS


NO_RECORD = json.dumps({"cases": {str(next(iter(cases.blocks("goal")))): {"seconds": {"ours": 1}}}})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cases": 3}', NO_RECORD])
def test_a_broken_file_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "blocks.json").write_text(text)
    with pytest.raises(ResultError, match=r"gpu/blocks\.json: expected a result file"):
        judge(tmp_path)
