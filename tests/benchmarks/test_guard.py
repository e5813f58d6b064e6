"""The guard: what it runs, what is worse, and what it says of a baseline that is passed, stale or not there."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.counted import guard as guards
from benchmarks.files import RESULTS

COUNTED = {part.baseline: json.loads((RESULTS / part.baseline).read_text()) for part in guards.PARTS}
TRAFFIC, GOALS, CODE = guards.PARTS

# Stands for a module that counts: it writes what it is told to, where --output says.
FAKE = """
import os, sys
from pathlib import Path
print("told:", os.environ.get("TRITON_INTERPRET"))
output = Path(sys.argv[-1])
(output if output.suffix else output / "report.json").write_text(Path(sys.argv[1]).read_text())
sys.exit(int(sys.argv[2]))
"""


def compare(tmp_path: Path, part: guards.Part, change: Any) -> guards.Comparison:
    """What the guard says of the committed counts with a change to them."""
    content = copy.deepcopy(COUNTED[part.baseline])
    change(content)
    (tmp_path / part.made).write_text(json.dumps(content))
    return guards.compare(part, RESULTS / part.baseline, tmp_path / part.made)


def test_what_is_committed() -> None:
    rows = COUNTED["baseline.json"]["rows"]
    assert all(row["spilled"] == 0 for row in rows)
    in_report = {row["kernel"] for row in json.loads((RESULTS / "compile" / "report.json").read_text())["rows"]}
    missing = in_report - {row["kernel"] for row in rows}
    assert not missing, f"the quick report leaves out {missing}"


@pytest.mark.parametrize("part", guards.PARTS, ids=lambda part: part.name)
def test_the_same_and_other_versions(part: guards.Part, tmp_path: Path) -> None:
    assert compare(tmp_path, part, lambda _: None) == guards.Comparison()
    found = compare(tmp_path, part, lambda content: content["versions"].update(torch="2.0"))
    assert (len(found.lines), found.failed, found.stale) == (1, False, True)
    # Another compiler's machine code is not compared; what was counted with another is.
    found = compare(tmp_path, part, lambda content: (content["versions"].update(triton="0"), content["rows"].clear()))
    assert found.failed == (part is not CODE)


@pytest.mark.parametrize("what", ["total", "sectors", "launches", "map_launches", "kept"])
def test_traffic_is_compared_exactly(what: str, tmp_path: Path) -> None:
    def add(sign: int) -> Any:
        def change(content: Any) -> None:
            row = next(row for row in content["rows"] if row["ours"])
            row["eager"]["forward"]["total"] += 9  # its own affair
            each = row["ours"]["kept"] if what == "kept" else row["ours"]["backward"]
            each["total" if what == "kept" else what] += sign * 1e-4

        return change

    found = compare(tmp_path, TRAFFIC, add(1))
    assert found.failed
    assert all(line.startswith("worse: ") for line in found.lines)
    found = compare(tmp_path, TRAFFIC, add(-1))
    assert (found.failed, found.stale) == (False, True)


def test_what_is_not_counted_any_more_fails(tmp_path: Path) -> None:
    def unserve(content: Any) -> None:
        next(row for row in content["rows"] if row["ours"])["ours"] = None

    found = compare(tmp_path, TRAFFIC, unserve)
    assert found.failed
    assert "worse: not there any more: " in found.lines[0]
    assert compare(tmp_path, CODE, lambda content: content["rows"].clear()).failed


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({"registers": 8}, False),
        ({"registers": 9}, True),
        ({"registers": -9}, False),
        ({"occupancy": -0.1}, True),
        ({"spilled": 1}, True),
        ({"shared": 1024}, False),
        ({"shared": 1025}, True),
        ({"loads": -1}, True),
        ({"stores": -1}, True),
        ({"loads": 16}, False),
        ({"tensor_cores": 4}, False),
    ],
    ids=str,
)
def test_machine_code(changes: dict[str, Any], worse: bool, tmp_path: Path) -> None:
    def change(content: Any) -> None:
        for row in content["rows"]:
            for key, more in changes.items():
                row[key] += more

    assert compare(tmp_path, CODE, change).failed == worse


def test_tensor_cores_that_are_not_used_any_more() -> None:
    assert guards.judged("tensor cores", 8, 0) == guards.WORSE
    assert guards.judged("tensor cores", 8, 2) == guards.judged("tensor cores", 0, 8) == guards.SAME


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the guard on what is committed, with other counts in place of the real ones."""
    module = tmp_path / "fake_count.py"
    module.write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = tmp_path / "results"
    results.mkdir()
    for name, content in COUNTED.items():
        (results / name).write_text(json.dumps(content))

    def run(*options: str, status: int = 0, **counted: Any) -> tuple[int, str, Path]:
        parts = []
        for part in (TRAFFIC, GOALS, CODE):
            file = tmp_path / f"counted {part.baseline}"
            file.write_text(json.dumps(counted.get(part.name, COUNTED[part.baseline])))
            parts.append(replace(part, command=(module.stem, str(file), str(status))))
        monkeypatch.setattr(guards, "PARTS", tuple(parts))
        exit_status = guards.main([*options, "--results", str(results)])
        said = capsys.readouterr()
        return exit_status, said.out + said.err, results

    return run


def test_checking_and_writing(guard: Any) -> None:
    status, said, results = guard()
    assert (status, said.endswith("Nothing got worse.\n"), "--write" in said) == (0, True, False)
    fewer = copy.deepcopy(COUNTED["traffic.json"])
    del fewer["rows"][-1]
    status, said, _ = guard("--check", traffic=fewer)
    assert status == 1
    assert "not there any more" in said
    assert "The baseline is not what is here any more: make it anew with --write." in said
    assert json.loads((results / "traffic.json").read_text()) == COUNTED["traffic.json"]
    assert guard("--write", traffic=fewer)[0] == 0
    assert json.loads((results / "traffic.json").read_text()) == fewer
    assert sorted(path.name for path in results.iterdir()) == ["baseline.json", "goals.json", "traffic.json"]


def test_a_part_that_fails_is_shown_and_written_nowhere(guard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    status, said, results = guard("--write", status=3, traffic={"rows": []})
    assert status == 1
    assert "traffic: `fake_count " in said
    assert "failed with exit status 3:\ntold: None" in said  # each decides for itself
    assert json.loads((results / "traffic.json").read_text()) == COUNTED["traffic.json"]


@pytest.mark.parametrize("broken", ["", "{}"])
def test_no_baseline(guard: Any, broken: str, tmp_path: Path) -> None:
    path = tmp_path / "results" / "baseline.json"
    path.write_text(broken) if broken else path.unlink()
    status, said, _ = guard()
    assert status == 2
    assert f"benchmarks.counted.guard: error: {path}: expected" in said
    assert guard("--write")[0] == 0
    assert json.loads(path.read_text()) == COUNTED["baseline.json"]
