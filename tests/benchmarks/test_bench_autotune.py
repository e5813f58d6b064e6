"""The suite of tuning: what it keeps when it is cut off, and first calls."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import bench_autotune
from benchmarks.bench_autotune import Case, Session, cases, first_call
from triton_attn.tuning import search, tables

CASE = next(cases("tiny"))


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timing: the widest of everything is the fastest."""
    monkeypatch.setattr(
        search, "time_all", lambda _, configs: [(config, 1.0 / sum(config.values())) for config in configs]
    )


@pytest.mark.interpreter
def test_every_search_is_kept_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    session = Session(tmp_path, None, keep=False)
    note, noted = session.note, []

    def interrupt(key: Any, found: Any) -> None:
        note(key, found)
        noted.append(str(key))
        if len(noted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "note", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.search(CASE)
    assert sorted(json.loads(session.path.read_text())["cases"]) == sorted(noted)
    assert sorted(map(str, tables.read(session.table).entries)) == sorted(noted)

    again = Session(tmp_path, None, keep=True)
    monkeypatch.setattr(again, "note", lambda key, found: (noted.append(str(key)), Session.note(again, key, found)))
    again.search(CASE)
    assert sorted(again.file["cases"]) == sorted(noted) == sorted(set(noted))
    assert again.file["searched"] == [str(CASE)]
    monkeypatch.setattr(bench_autotune, "tune_calls", lambda *_, **__: pytest.fail("a search"))
    again.search(CASE)
    Session(tmp_path, None, keep=True).search(CASE)
    with pytest.raises(pytest.fail.Exception, match="a search"):
        Session(tmp_path, None, keep=False).search(CASE)


@pytest.mark.interpreter
def test_a_first_call_goes_by_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    session = Session(tmp_path, None, keep=False)
    session.search(CASE)
    first, second, by_table = first_call(CASE, session.table, None)
    assert min(first, second) > 0
    assert by_table == len(session.file["cases"])


def test_no_search_begins_when_the_time_is_spent(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="the time limit is spent"):
        Session(tmp_path, 0.0, keep=False).search(CASE)


def test_the_first_call_comes_first_and_half_of_the_time_is_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name for name in vars(bench_autotune) if name.startswith("test_")] == ["test_first_call", "test_launches"]
    budgets: list[float] = []

    def tune_calls(*_: Any, budget: float, **__: Any) -> Any:
        budgets.append(budget)
        return SimpleNamespace(left_out=["a key"])

    monkeypatch.setattr(bench_autotune, "tune_calls", tune_calls)
    monkeypatch.setattr(bench_autotune, "first_call", lambda *_: (3.0, 0.2, 0))
    monkeypatch.setattr(bench_autotune, "time", SimpleNamespace(time=lambda: 1000.0))
    request: Any = SimpleNamespace(config=SimpleNamespace(getoption=lambda _: "tiny"))
    session = Session(tmp_path, 1100.0, keep=True)
    bench_autotune.test_first_call(session, request)
    session.search(CASE)  # goes on with what was left out
    assert budgets == [50, 100]


def session_with_a_table(folder: Path, end: float | None = None) -> Session:
    session = Session(folder, end, keep=True)
    session.table.parent.mkdir(parents=True)
    session.table.touch()
    return session


def test_a_first_call_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(_: Case, table: Path | None, __: float | None) -> tuple[float, float, int]:
        return (3.1, 0.1, 4) if table else (3.0, 0.2, 0)

    monkeypatch.setattr(bench_autotune, "first_call", child)
    session = session_with_a_table(tmp_path)
    found = session.measure_first_call(CASE)
    assert found == {
        "case": str(CASE),
        "without_table": 3.0,
        "with_table": 3.1,
        "second_call": 0.2,
        "launches_by_table": 4,
    }
    assert json.loads(session.path.read_text())["first_call"] == found
    # Without an entry that is taken there is nothing to say of a table.
    monkeypatch.setattr(bench_autotune, "first_call", lambda *_: (3.0, 0.2, 0))
    found = session.measure_first_call(CASE)
    assert (found["with_table"], found["launches_by_table"]) == (None, 0)
    session.table.unlink()
    found = session.measure_first_call(CASE)
    assert (found["without_table"], found["with_table"], found["launches_by_table"]) == (3.0, None, None)


@pytest.mark.parametrize(
    ("script", "said"),
    [("import time; time.sleep(60)", "it did not end in 1 s"), ("raise OSError('no GPU')", "OSError: no GPU")],
)
def test_a_first_call_that_fails_is_recorded(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_autotune, "FIRST_CALL", script)
    monkeypatch.setattr(bench_autotune, "CHILD_SECONDS", 1.0 if "sleep" in script else 600.0)
    session = session_with_a_table(tmp_path)
    session.measure_first_call(CASE)
    found = json.loads(session.path.read_text())["first_call"]
    assert said in found["failed"]
    assert found["with_table"] is None


@pytest.mark.parametrize(("left", "timeout"), [(None, 120.0), (500.0, 120.0), (50.0, 80.0), (-20.0, 10.0)])
def test_how_long_a_first_call_may_take(left: float | None, timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def run(words: list[str], **options: Any) -> Any:
        given.update(options)
        return subprocess.CompletedProcess(words, 0, stdout="a warning\n[2.0, 1.0, 3]\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert first_call(CASE, None, left) == (2.0, 1.0, 3)
    assert given["timeout"] == timeout
