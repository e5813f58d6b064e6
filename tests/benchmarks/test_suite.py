"""What all suites share: pairs, files that lose nothing, going on, and time limits."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measurement
from benchmarks.measurement import ENDED, LATE, Prepared, paired
from benchmarks.suite import LOST, Session
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


def test_samples_are_their_cases(tmp_path: Path) -> None:
    session = Session("toys", Counting(), tmp_path, rounds=2)
    one, two = (session.samples_of(Case(name), ["ours"])[1] for name in ("one", "two"))
    assert session.samples_of(Case("one"), ["ours"])[1] is one is not two


def test_fewer_providers_do_not_replace_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, _ = Session("toys", Counting(), tmp_path, rounds=2).samples_of(Case("one"), ["ours", "b"])
    session = Session("toys", Counting(), tmp_path, rounds=2)
    assert list(session.samples_of(Case("one"), ["b"])[1]) == ["other"]
    assert "one: not written, the file has it with more providers" in capsys.readouterr().out
    assert json.loads((tmp_path / "cpu" / "toys.json").read_text())["cases"] == {"one": full}
    # And going on, ours is measured where it was not yet.
    Session("toys", Counting(), tmp_path, rounds=2).samples_of(Case("two"), ["b"])
    session = Session("toys", Counting(), tmp_path, rounds=2, keep=True)
    assert "ours" in session.samples_of(Case("two"), ["ours", "b"])[1]


def test_a_broken_file_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session("toys", Counting(), tmp_path, rounds=2)
    session.samples_of(Case("one"), ["ours"])
    session.path.write_text(session.path.read_text()[:100])
    Session("toys", Counting(), tmp_path, rounds=2, keep=True).samples_of(Case("two"), ["ours"])
    assert "made anew: " in capsys.readouterr().out
    assert list(json.loads(session.path.read_text())["cases"]) == ["two"]


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
    session = Session("toys", Counting(), tmp_path, rounds=2, end=0.0)
    with pytest.raises(pytest.skip.Exception, match=LATE):
        session.samples_of(Case("one"), ["ours"])
    assert not session.path.exists()


def test_no_case_is_begun_that_would_not_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def slow(case: Case, chosen: Sequence[str]) -> Prepared:
        now[0] += 60
        return Counting()(case, chosen)

    session = Session("toys", slow, tmp_path, rounds=2, end=1100.0)
    session.samples_of(Case("one"), ["ours"])
    with pytest.raises(pytest.skip.Exception, match=LATE):
        session.samples_of(Case("two"), ["ours"])

    @dataclass(frozen=True)
    class Long(Case):
        least_seconds = 240.0

    with pytest.raises(pytest.skip.Exception, match=LATE):
        Session("toys", slow, tmp_path, rounds=2, end=now[0] + 200).samples_of(Long("long"), ["ours"])


def test_providers_for_whom_the_time_was_over_are_measured_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def prepare(case: Case, chosen: Sequence[str]) -> Prepared:
        found = Counting()(case, chosen)

        def compiling() -> Any:
            now[0] += 100
            return found.makers["ours"]()

        return Prepared({**found.makers, "ours": compiling})

    record, samples = Session("toys", prepare, tmp_path, rounds=2, keep=True, end=50.0).samples_of(
        Case("one"), ["ours", "c"]
    )
    assert list(samples) == ["ours"]
    assert record["not_timed"] == {"c": LATE}
    record, _ = Session("toys", prepare, tmp_path, rounds=2, keep=True).samples_of(Case("one"), ["ours", "c"])
    assert list(record["seconds"]) == ["ours", "c"]
    assert record["not_timed"] == {}


def test_a_case_that_ends_the_process_is_begun_twice_and_no_more(tmp_path: Path) -> None:
    def prepare(case: Case, chosen: Sequence[str]) -> Prepared:
        if case.name == "bad":
            raise SystemExit  # as good as a crash: nothing is written any more
        return Counting()(case, chosen)

    for attempt in (1, 2):
        session = Session("toys", prepare, tmp_path, rounds=2, keep=True)
        with pytest.raises(SystemExit):
            session.samples_of(Case("bad"), ["ours"])
        assert json.loads(session.path.read_text())["cases"]["bad"]["attempts"] == attempt
    session = Session("toys", prepare, tmp_path, rounds=2, keep=True)
    record, samples = session.samples_of(Case("bad"), ["ours"])
    assert samples == {}
    assert record["not_timed"] == {"ours": ENDED}
    assert session.samples_of(Case("good"), ["ours"])[1]


def test_a_case_that_cannot_be_prepared_is_tried_once(tmp_path: Path) -> None:
    tried = []

    def prepare(case: Case, _: Sequence[str]) -> Prepared:
        tried.append(case)
        raise ValueError("no such shape\nand more")

    session = Session("toys", prepare, tmp_path, rounds=2)
    for _ in range(2):
        record, samples = session.samples_of(Case("one"), ["ours", "b"])
    assert tried == [Case("one")]
    assert record["not_timed"] == {"ours": "ValueError: no such shape", "b": "ValueError: no such shape"}
    assert samples == {}


def test_who_has_no_room_beside_the_others_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(_: Case, chosen: Sequence[str]) -> Prepared:
        sizes = {"ours": 1, "c": 1_000_000}
        return Prepared({who: (lambda size=sizes[who]: lambda: torch.ones(size)) for who in chosen})

    def tight(runs: dict[str, Any], _: Any, rounds: int, **__: int) -> dict[str, list[float]]:
        if "c" in runs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {name: [0.1] * rounds for name in runs}

    monkeypatch.setattr(measurement, "measure", tight)
    record, samples = Session("toys", prepare, tmp_path, rounds=2).samples_of(Case("one"), ["ours", "c"])
    assert list(samples) == ["ours"]
    assert record["not_timed"] == {"c": "beside the others: OutOfMemoryError: CUDA out of memory"}


def test_a_gpu_that_answers_no_more_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(measurement, "free", broken)
    session = Session("toys", Counting(), tmp_path, rounds=2, keep=True)
    with pytest.raises(pytest.exit.Exception, match="answers no more") as stopped:
        session.samples_of(Case("one"), ["greedy", "ours"])
    assert stopped.value.returncode == LOST
    # What failed is told, and the case is not begun again.
    assert json.loads(session.path.read_text())["cases"]["one"]["not_timed"]["greedy"].startswith("MemoryError")
    again = Counting()
    Session("toys", again, tmp_path, rounds=2, keep=True).samples_of(Case("one"), ["greedy", "ours"])
    assert again.made == []


def test_rounds_go_by_the_time_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def slow(runs: Any, _: Any, rounds: int, **__: int) -> dict[str, list[float]]:
        asked.append(rounds)
        return {name: [0.1] * rounds for name in runs}

    monkeypatch.setattr(measurement, "measure", slow)
    session = Session("toys", Counting(), tmp_path)
    session.samples_of(Case("one"), ["ours", "b"])
    assert asked == [1, max(int(measurement.SECONDS_A_CASE / 0.2), measurement.LEAST_ROUNDS)]


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
