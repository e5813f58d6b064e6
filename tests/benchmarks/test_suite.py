"""What all suites share: pairs, files that lose nothing, going on, and time limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import suite
from benchmarks.suite import Prepared, Session, paired
from benchmarks.timing import WARM_UP, CpuClock, Replay, measure, quartiles


@dataclass(frozen=True)
class Case:
    name: str

    def __str__(self) -> str:
        return self.name


class Counting:
    """Prepares cases, and counts how often."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def __call__(self, case: Case, chosen: Sequence[str]) -> Prepared:
        def maker(provider: str) -> Any:
            def make() -> Any:
                self.made.append((str(case), provider))
                if provider == "greedy":
                    raise MemoryError("out of memory\nand more")
                return lambda: bytearray(1000)

            return make

        return Prepared({each: maker(each) for each in chosen}, lambda runs, _: {"ran": sorted(runs)}, {"b": "other"})


def test_a_record(tmp_path: Path) -> None:
    session = Session("toys", Counting(), tmp_path, rounds=4)
    record, samples = session.samples_of(Case("one"), ["ours", "b", "greedy"])
    assert {name: len(each) for name, each in samples.items()} == {"ours": 4, "other": 4}
    assert record["name"] == "one"
    assert record["rounds"] == 4
    assert record["not_timed"] == {"greedy": "MemoryError: out of memory"}
    assert list(record["ours_over"]) == ["other"]
    assert record["ran"] == ["other", "ours"]
    assert set(record["peak_bytes"]) == {"ours", "other"}
    file = json.loads((tmp_path / "cpu" / "toys.json").read_text())
    assert file["cases"] == {"one": record}
    assert file["suite"] == "toys"
    assert {"torch", "triton", "timm", "Python"} <= file["versions"].keys()


def test_the_file_is_written_after_every_case(tmp_path: Path) -> None:
    session = Session("toys", Counting(), tmp_path, rounds=2)
    for count, name in enumerate("abc", start=1):
        session.samples_of(Case(name), ["ours"])
        assert len(json.loads(session.path.read_text())["cases"]) == count
        assert [path.name for path in session.path.parent.iterdir()] == ["toys.json"]


def test_going_on(tmp_path: Path) -> None:
    first, again, anew = Counting(), Counting(), Counting()
    one, _ = Session("toys", first, tmp_path, rounds=2).samples_of(Case("one"), ["ours", "b"])
    session = Session("toys", again, tmp_path, rounds=2, keep=True)
    record, samples = session.samples_of(Case("one"), ["ours", "b"])
    assert record == one
    assert samples["other"] == [one["seconds"]["other"][key] for key in ("q1", "median", "q3")]
    assert again.made == []
    session.samples_of(Case("two"), ["ours"])
    assert again.made == [("two", "ours")]
    Session("toys", anew, tmp_path, rounds=2).samples_of(Case("one"), ["ours"])
    assert anew.made == [("one", "ours")]


def test_results_of_other_versions_are_dropped(tmp_path: Path) -> None:
    session = Session("toys", Counting(), tmp_path, rounds=2)
    session.samples_of(Case("old"), ["ours"])
    found = json.loads(session.path.read_text())
    found["versions"]["torch"] = "1.0"
    session.path.write_text(json.dumps(found))
    later = Session("toys", Counting(), tmp_path, rounds=2, keep=True)
    later.samples_of(Case("new"), ["ours"])
    assert list(json.loads(session.path.read_text())["cases"]) == ["new"]


def test_no_case_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    session = Session("toys", Counting(), tmp_path, rounds=2, limit=0)
    with pytest.raises(pytest.skip.Exception, match="the time limit is spent"):
        session.samples_of(Case("one"), ["ours"])
    assert not session.path.exists()


def test_rounds_go_by_the_time_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def slow(runs: Any, _: Any, rounds: int, **__: int) -> dict[str, list[float]]:
        asked.append(rounds)
        return {name: [0.1] * rounds for name in runs}

    monkeypatch.setattr(suite, "measure", slow)
    session = Session("toys", Counting(), tmp_path)
    session.samples_of(Case("one"), ["ours", "b"])
    assert asked == [1, max(int(suite.SECONDS_A_CASE["cpu"] / 0.2), suite.LEAST_ROUNDS)]


def test_pairs_are_of_the_same_round() -> None:
    # The machine is ten times slower in the second round, for both.
    found = paired({"ours": [1.0, 10.0, 1.0], "other": [2.0, 20.0, 2.0], "slow": [4.0, 40.0, 8.0]})
    assert found["other"] == {"median": 0.5, "q1": 0.5, "q3": 0.5}
    assert found["slow"]["median"] == 0.25
    assert paired({"other": [1.0]}) == {}


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
    samples = measure(runs, clock, 30)
    assert samples == {"a": [1.0] * 30, "b": [2.0] * 30, "c": [3.0] * 30}
    timed = "".join(order[3 * WARM_UP :])
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    # Nobody always comes behind the same.
    assert len(set(rounds)) == 6
    assert {timed[i : i + 2] for i in range(len(timed) - 1)} >= {"ab", "ac", "ba", "bc", "ca", "cb"}


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert quartiles([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}


def test_a_replay_tells_differences() -> None:
    replay = Replay()
    replay.load([0.5, 0.25])
    assert [-replay() + replay() for _ in range(2)] == [0.5, 0.25]
