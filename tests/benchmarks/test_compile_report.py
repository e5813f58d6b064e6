"""The compile report: what is in it, that it is the same every time, and that it fails where it should."""

from __future__ import annotations

import json
import pickle
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.counted import compile_report
from benchmarks.counted.machine_code import Report, compiled, promised

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is promised holds, whatever compiler is here."""
    monkeypatch.setattr(compile_report, "promised", lambda: True)


REPORT = Report("sm_90", 8, 64, 0, 2048, (4, 16, 16), (2, 16), 3)


def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--blocks", "pixel", "--targets", "sm_90,gfx942", "--workers", "1"]
    assert compile_report.main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())
    text = (tmp_path / "report.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]

    launches = compile_report.launches(["pixel"], ["sm_90", "gfx942"], quick=True)
    assert f"{len(launches)} programs of pixel, on sm_90, gfx942." in printed
    assert found["versions"]["triton"] in text
    for target in ("sm_90", "gfx942"):
        rows = [row for row in found["rows"] if row["target"] == target]
        own = {launch: uses for (launch, of), uses in launches.items() if of == target}
        assert sum(row["programs"] for row in rows) == len(own)
        assert {row["kernel"] for row in rows} == {launch.name for launch in own}
        for launch, uses in own.items():
            report = compiled(launch, target)
            row = next(
                row
                for row in rows
                if (row["kernel"], row["registers"], row["shared"], row["loads"], row["stores"])
                == (launch.name, report.registers, report.shared, report.widest_load, report.widest_store)
                and set(row["layout"].split(", ")) == {use.layout for use in uses}
            )
            assert row["occupancy"] == pytest.approx(report.occupancy, abs=1e-3)
            assert row["blocks"] == "pixel"
            assert f"| {launch.name} | {target} | bfloat16 | {row['layout']} | {report.num_warps} |" in text


def test_alike_programs_are_one_row_in_the_same_order() -> None:
    launches = compile_report.launches(["se"], ["sm_90", "gfx942"], quick=True)
    found = [(launch, uses, replace(REPORT, target=target)) for (launch, target), uses in launches.items()]
    rows = compile_report.rows_of(found)
    assert sum(row.programs for row in rows) == len(found)
    assert len({(row.kernel, row.target, row.layout) for row in rows}) == len(rows)
    random.Random(0).shuffle(found)
    assert compile_report.rows_of(found) == rows
    assert rows[0].occupancy == 0.5
    assert (rows[0].loads, rows[0].stores, rows[0].tensor_cores) == (16, 16, 3)
    assert compile_report.summary(rows).count("\n") == 1 + len({(row.kernel, row.target) for row in rows})


def test_it_fails_where_something_spills_or_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--blocks", "se", "--workers", "1"]
    for report, message in (
        (replace(REPORT, spilled=8), "channels_last (se): spills registers"),
        (replace(REPORT, shared=228 * 1024), "(se): 233472 bytes of shared memory, 232448 there are"),
    ):
        monkeypatch.setattr(compile_report, "compiled", lambda *_, report=report: report)
        assert compile_report.main(arguments) == 1
        assert message in capsys.readouterr().err


def test_it_fails_where_nothing_is_launched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing spills there, either."""
    monkeypatch.setattr(compile_report, "block_launches", lambda *_, **__: [])
    assert compile_report.main(["--quick", "--blocks", "se", "--workers", "1"]) == 1
    assert "se: expected launches, there are none" in capsys.readouterr().err


def test_non_local_promises_less_on_some_targets() -> None:
    rows = compile_report.rows_of(
        (launch, uses, replace(REPORT, target=target, spilled=4))
        for (launch, target), uses in compile_report.launches(["nonlocal"], ["sm_80", "sm_90"], quick=True).items()
    )
    attention = [row for row in rows if row.kernel.startswith("non_local")]
    held = [row for row in attention if not compile_report.may_spill(row)]
    assert {(row.target, row.dtype) for row in held} == {("sm_90", "bfloat16")}
    assert {(row.target, row.dtype) for row in attention} == {
        (target, dtype) for target in ("sm_80", "sm_90") for dtype in ("bfloat16", "float32")
    }
    assert len(compile_report.failures(attention)) == len(held)
    assert not compile_report.may_spill(replace(attention[0], kernel="squeeze_fwd_kernel"))


def test_other_processes_find_the_same() -> None:
    jobs = list(compile_report.launches(["se"], ["sm_90"], quick=True))[:2]
    assert pickle.loads(pickle.dumps(jobs)) == jobs
    assert compile_report.compile_all(jobs, 2) == compile_report.compile_all(jobs, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "sm_42"], "--targets: unknown sm_42; known are sm_80"),
        (["--blocks", "see"], "--blocks: unknown see; known are "),
        (["--workers", "0"], "--workers: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compile_report.main(arguments)
    assert message in capsys.readouterr().err


def test_without_the_disassembly(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_report, "QUICK", compile_report.QUICK[:1])
    said = []
    for options in ([], ["--ptx"]):
        assert compile_report.main(["--quick", "--blocks", "eca", "--workers", "1", *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert re.search(r"^0 of \d+ kinds spill: none$", said[1], re.MULTILINE)


def test_nothing_is_promised_of_an_old_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    row = compile_report.Row("squeeze_fwd_kernel", "sm_90", "bfloat16", "contiguous", 4, 255, 8, 0, 0.25, 16, 16, 0)
    monkeypatch.setattr(compile_report, "promised", promised)
    for version, fails in (("3.6.0", True), ("3.10.0+git1", True), ("3.4.0", False)):
        monkeypatch.setattr(triton, "__version__", version)
        assert bool(compile_report.failures([row])) == fails
        assert compile_report.failures([replace(row, shared=10**6)])
