"""The gpu lane where time is short: parts, what a crash and a cut-off leave, and going on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lane import LATE, LOST, Record

ROOT = Path(__file__).parents[2]
TESTS = """
import os
import pytest

@pytest.mark.parametrize("i", range(4))
def test_first(i):
    pass

@pytest.mark.parametrize("i", range(3))
def test_second(i):
    assert i != 1, "one is wrong"

def test_third():
    pytest.skip("not here")
"""


def run(folder: Path, program: str, *words: str) -> int:
    (folder / "test_toys.py").write_text(program)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.lane", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(folder), str(folder / "test_toys.py"), f"--record={folder / 'tests.jsonl'}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600).returncode


def ended(folder: Path) -> list[str]:
    return [test.rpartition("::")[2] for test in Record(folder / "tests.jsonl").ended]


def test_the_first_cases_of_all_come_first(tmp_path: Path) -> None:
    assert run(tmp_path, TESTS) == 1
    assert ended(tmp_path) == [
        *("test_first[0]", "test_second[0]", "test_third", "test_first[1]", "test_second[1]"),
        *("test_first[2]", "test_second[2]", "test_first[3]"),
    ]
    outcome = Record(tmp_path / "tests.jsonl").outcome()
    assert (outcome["passed"], outcome["failed"], outcome["skipped"]) == (6, 1, 1)
    ((test, text),) = outcome["failures"].items()
    assert test.endswith("::test_second[1]")
    assert "one is wrong" in text
    assert outcome["skips"] == ["Skipped: not here"]
    # Nothing is left, also of what failed.
    assert run(tmp_path, TESTS) == 5


def test_parts_are_all_and_nothing_twice(tmp_path: Path) -> None:
    for part in ("1/3", "2/3", "3/3"):
        run(tmp_path, TESTS, f"--shard={part}")
    found = ended(tmp_path)
    assert len(found) == len(set(found)) == 8
    assert len((tmp_path / "tests.jsonl").read_text().splitlines()) == 16


def test_going_on_behind_a_cut_off(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        assert run(tmp_path, TESTS, "--until=0") == LATE
        assert len(ended(tmp_path)) == count
    # Cut off within a line.
    path = tmp_path / "tests.jsonl"
    path.write_text(path.read_text()[:-20])
    assert run(tmp_path, TESTS, "--until=inf") == 1
    assert len(ended(tmp_path)) == 8


def test_a_test_that_ends_the_process_is_begun_twice_and_no_more(tmp_path: Path) -> None:
    program = TESTS.replace("assert i != 1", "i == 1 and os._exit(9)\n    assert i != 1")
    assert run(tmp_path, program) == 9
    assert run(tmp_path, program) == 9
    assert run(tmp_path, program) == 0
    outcome = Record(tmp_path / "tests.jsonl").outcome()
    assert list(outcome["failures"].values()) == ["the process ended while it ran"]
    assert outcome["passed"] == 6


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access", "Triton Error [CUDA]: an illegal address"])
def test_a_lost_gpu_ends_the_process(tmp_path: Path, message: str) -> None:
    program = TESTS.replace("one is wrong", message)
    assert run(tmp_path, program) == LOST
    assert ended(tmp_path)[-1] == "test_second[1]"
    assert run(tmp_path, program) == 0
    assert len(ended(tmp_path)) == 8


def test_a_record_is_json_lines(tmp_path: Path) -> None:
    record = Record(tmp_path / "tests.jsonl")
    record.note(begun="a")
    record.note(test="a", outcome="passed", seconds=0.1, text="")
    lines = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert lines == [{"begun": "a"}, {"test": "a", "outcome": "passed", "seconds": 0.1, "text": ""}]
    again = Record(record.path)
    assert again.is_done("a")
    assert not again.is_done("b")
