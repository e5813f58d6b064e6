"""The guard: what it runs, what it says of a baseline that is passed, stale or not there. The counting is faked."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import kind_of
from benchmarks.counted import guard as guards
from benchmarks.files import RESULTS

COUNTED = {part.baseline: json.loads((RESULTS / part.baseline).read_text()) for part in guards.PARTS}

# Stands for a module that counts: it writes what it is told to, where --output says.
FAKE = """
import os, sys
from pathlib import Path
print("told:", os.environ.get("TRITON_INTERPRET"))
output = Path(sys.argv[-1])
(output if output.suffix else output / "report.json").write_text(Path(sys.argv[1]).read_text())
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the guard on what is committed, with other counts in place of the real ones."""
    module = tmp_path / "fake_count.py"
    module.write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    results = tmp_path / "results"
    results.mkdir()
    for name, content in COUNTED.items():
        (results / name).write_text(json.dumps(content))

    def run(*options: str, status: int = 0, **counted: Any) -> tuple[int, str, Path]:
        parts = []
        for part in guards.PARTS:
            file = tmp_path / f"counted {part.baseline}"
            file.write_text(json.dumps(counted.get(part.name.replace(" ", "_"), COUNTED[part.baseline])))
            parts.append(replace(part, command=(module.stem, str(file), str(status))))
        monkeypatch.setattr(guards, "PARTS", tuple(parts))
        exit_status = guards.main([*options, "--results", str(results)])
        said = capsys.readouterr()
        return exit_status, said.out + said.err, results

    return run


def changed(name: str, change: Any) -> Any:
    content = json.loads(json.dumps(COUNTED[name]))
    change(content["rows"])
    return content


def test_what_is_committed() -> None:
    assert {part.name: kind_of(COUNTED[part.baseline]) for part in guards.PARTS} == {
        part.name: part.name for part in guards.PARTS
    }
    rows = COUNTED["baseline.json"]["rows"]
    assert all(row["spilled"] == 0 for row in rows)
    in_report = {row["kernel"] for row in json.loads((RESULTS / "compile" / "report.json").read_text())["rows"]}
    missing = in_report - {row["kernel"] for row in rows}
    assert not missing, f"the quick report leaves out {missing}"


def test_the_same_passes(guard: Any) -> None:
    status, said, _ = guard()
    assert (status, guard("--check")[0]) == (0, 0)
    assert said.endswith("Nothing got worse.\n")
    assert "--write" not in said


def test_more_traffic_fails(guard: Any) -> None:
    def more(rows: Any) -> None:
        next(row for row in rows if row["ours"])["ours"]["backward"]["total"] += 0.01

    status, said, results = guard(traffic=changed("traffic.json", more))
    assert status == 1
    assert said.count("worse") == 3  # T, T in whole sectors, and the end
    assert json.loads((results / "traffic.json").read_text()) == COUNTED["traffic.json"]


def test_more_registers_fail_and_fewer_are_said(guard: Any) -> None:
    def add(registers: int) -> Any:
        def change(rows: Any) -> None:
            for row in rows:
                row["registers"] += registers

        return change

    status, said, _ = guard(machine_code=changed("baseline.json", add(9)))
    assert status == 1
    assert "registers" in said
    status, said, _ = guard(machine_code=changed("baseline.json", add(-9)))
    assert status == 0
    assert "The baseline is not what is here any more: make it anew with --write." in said


def test_write_puts_the_new_in_its_place(guard: Any) -> None:
    def drop(rows: Any) -> None:
        del rows[-1]

    fewer = {"traffic": changed("traffic.json", drop), "machine_code": changed("baseline.json", drop)}
    status, said, results = guard("--write", **fewer)
    assert status == 0
    assert "only in OLD" in said
    assert json.loads((results / "traffic.json").read_text()) == fewer["traffic"]
    assert json.loads((results / "baseline.json").read_text()) == fewer["machine_code"]
    assert sorted(path.name for path in results.iterdir()) == ["baseline.json", "traffic.json"]


def test_a_part_that_fails_is_shown_and_written_nowhere(guard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    status, said, results = guard("--write", status=3, traffic={"rows": []})
    assert status == 1
    assert "traffic: `fake_count " in said
    assert "failed with exit status 3:\ntold: None" in said  # each decides for itself
    assert json.loads((results / "traffic.json").read_text()) == COUNTED["traffic.json"]


@pytest.mark.parametrize("broken", ["", "{}"])
def test_no_baseline(guard: Any, broken: str) -> None:
    _, _, results = guard()
    path = results / "baseline.json"
    path.write_text(broken) if broken else path.unlink()
    status, said, _ = guard()
    assert status == 2
    assert f"benchmarks.counted.guard: error: {path}: expected" in said
    status, said, _ = guard("--write")
    assert status == 0
    assert json.loads(path.read_text()) == COUNTED["baseline.json"]
