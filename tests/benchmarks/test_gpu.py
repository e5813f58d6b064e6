"""One command for a GPU: its stages, what a cut-off leaves, and going on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu
from benchmarks.gpu import STAGES, Stage
from benchmarks.lane import LATE

ROOT = Path(__file__).parents[2]
JUNIT = '<testsuites><testsuite><testcase classname="a" name="b">{}</testcase></testsuite></testsuites>'
QUICK = ["--device", "cpu", "--quick"]
PASSED = [{"begun": "a"}, {"test": "a", "outcome": "passed", "seconds": 0.1, "text": ""}]
FAILED = [{"begun": "b"}, {"test": "b", "outcome": "failed", "seconds": 0.1, "text": "assert 1 == 2"}]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command does to the environment ends with the test."""
    for name in ("TRITON_INTERPRET", "TRITON_ATTN_BACKEND", "TRITON_ATTN_CACHE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "LEAST", 0.0)


Script = Callable[[str, Path], str]


def scripted(monkeypatch: pytest.MonkeyPatch, script: Script) -> list[str]:
    """Suites, and the parts of the lane, run these Python programs in place of pytest; returns whose were made."""
    begun: list[str] = []

    def command(stage: Stage, _: float, junit: Path, __: object) -> list[str]:
        begun.append(stage.name)
        return [sys.executable, "-c", script(stage.name, junit)]

    def lane_command(record: Path, *_: object) -> list[str]:
        begun.append("tests")
        return [sys.executable, "-c", script("tests", record)]

    monkeypatch.setattr(gpu, "command", command)
    monkeypatch.setattr(gpu, "lane_command", lane_command)
    return begun


def noting(path: Path, lines: list[dict[str, object]], status: int = 0) -> str:
    """A part of the lane that ends so."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return f"open({str(path)!r}, 'a').write({text!r}); raise SystemExit({status})"


def passing(stage: str, path: Path) -> str:
    return noting(path, PASSED) if stage == "tests" else f"open({str(path)!r}, 'w').write({JUNIT.format('')!r})"


def log_of(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "interpreter" / "gpu.json").read_text())["stages"]


def archived(folder: Path) -> list[str]:
    with tarfile.open(folder / "interpreter.tar.gz") as packed:
        return sorted(packed.getnames())


def lane_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "interpreter" / "tests.json").read_text())


def test_stages_in_order_and_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = scripted(monkeypatch, passing)
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,tests"]) == 0
    assert begun == ["tests", "blocks"]
    assert {name: each["complete"] for name, each in log_of(tmp_path).items()} == {"tests": True, "blocks": True}
    tests = lane_of(tmp_path)
    assert (tests["passed"], tests["failed"], tests["skipped"]) == (1, 0, 0)
    begun.clear()
    assert gpu.main([*QUICK, "--output", str(tmp_path)]) == 0
    assert begun == ["calls", "nonlocal", "models", "autotune"]
    begun.clear()
    (tmp_path / "interpreter" / "blocks.json").write_text("of before")
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--fresh"]) == 0
    assert begun == [stage.name for stage in STAGES]
    assert not (tmp_path / "interpreter" / "blocks.json").exists()


def test_the_files_come_as_one_too_whatever_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*QUICK, "--output", str(tmp_path), "--stages", "tests,models"]
    files = [f"interpreter/{name}" for name in ("gpu.json", "tests.json", "tests.jsonl")]
    seen: list[list[str]] = []

    def command(_: Stage, __: float, junit: Path, ___: object) -> list[str]:
        seen.append(archived(tmp_path))  # so it is there even if all of this is killed now
        return [sys.executable, "-c", passing("models", junit)]

    scripted(monkeypatch, lambda _, path: noting(path, FAILED, 1))
    monkeypatch.setattr(gpu, "command", command)
    assert gpu.main(words) == 1
    assert seen == [["interpreter", *files]]
    for error in (gpu.Interrupted, MemoryError):

        def ended(*_: object, error: type[BaseException] = error) -> None:
            (tmp_path / "interpreter" / f"{error.__name__}.json").touch()
            raise error

        monkeypatch.setattr(gpu, "run_suite", ended)
        with pytest.raises(MemoryError) if error is MemoryError else contextlib.nullcontext():
            gpu.main([*words, "--stages", "blocks"])
        assert f"interpreter/{error.__name__}.json" in archived(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["interpreter", "interpreter.tar.gz"]


def test_what_is_complete_takes_no_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, passing)
    gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "autotune,models"])
    ends: list[float] = []

    def command(_: Stage, end: float, junit: Path, __: object) -> list[str]:
        ends.append(end)
        return [sys.executable, "-c", passing("blocks", junit)]

    monkeypatch.setattr(gpu, "command", command)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(time=lambda: 1000.0))
    gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,autotune,models", "--budget", "100s"])
    assert ends == [1100.0]


def test_a_stage_that_is_cut_off_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    outlived = tmp_path / "outlived"

    def script(stage: str, path: Path) -> str:
        if stage == "blocks":
            return f"import time; time.sleep(600); open({str(outlived)!r}, 'w')"
        monkeypatch.setattr(gpu, "GRACE", 600.0)  # this one has all the time it wants
        return passing(stage, path)

    begun = scripted(monkeypatch, script)
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,models", "--budget", "3s"]) == 0
    assert not outlived.exists()
    assert {name: each["complete"] for name, each in log_of(tmp_path).items()} == {"blocks": False, "models": True}
    assert "Not complete: blocks" in capfd.readouterr().out
    begun.clear()
    scripted_again = scripted(monkeypatch, passing)
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,models"]) == 0
    assert scripted_again == ["blocks"]


def test_tests_that_are_cut_off_keep_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hanging = "open({!r}, 'a').write({!r}); import time; time.sleep(600)"
    text = "".join(json.dumps(line) + "\n" for line in FAILED)
    scripted(monkeypatch, lambda _, path: hanging.format(str(path), text))
    words = [*QUICK, "--output", str(tmp_path), "--stages", "tests"]
    written = tmp_path / "interpreter" / "tests.jsonl"

    def now() -> float:
        """The time is over as soon as the test has failed."""
        return 1e9 if written.exists() and written.read_text() == text else 0.0

    with monkeypatch.context() as context:
        context.setattr(gpu, "time", SimpleNamespace(time=now, sleep=time.sleep))
        assert gpu.main(words) == 1
    assert "FAILED b\n    assert 1 == 2" in capfd.readouterr().out
    assert lane_of(tmp_path)["failures"] == {"b": "assert 1 == 2"}
    assert log_of(tmp_path)["tests"]["complete"] is False
    # The second call adds to it; a part whose time was over says so itself.
    scripted(monkeypatch, lambda _, path: noting(path, PASSED, LATE))
    assert gpu.main(words) == 1
    assert log_of(tmp_path)["tests"]["complete"] is False
    scripted(monkeypatch, lambda _, path: noting(path, [], 5))
    assert gpu.main(words) == 1
    assert log_of(tmp_path)["tests"]["complete"] is True
    assert (lane_of(tmp_path)["passed"], lane_of(tmp_path)["failed"]) == (1, 1)
    # So does one behind an interruption. A fresh one forgets it.
    scripted(monkeypatch, lambda _, path: noting(path, PASSED))

    def interrupted(*_: object) -> None:
        raise gpu.Interrupted

    with monkeypatch.context() as context:
        context.setattr(gpu, "side_by_side", interrupted)
        gpu.main([*words, "--fresh"])
    assert log_of(tmp_path)["tests"]["complete"] is False
    (tmp_path / "interpreter" / "tests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in FAILED))
    assert gpu.main(words) == 1
    assert (lane_of(tmp_path)["passed"], lane_of(tmp_path)["failed"]) == (1, 1)
    scripted(monkeypatch, passing)
    assert gpu.main([*words, "--fresh"]) == 0
    assert (lane_of(tmp_path)["passed"], lane_of(tmp_path)["failed"]) == (1, 0)


def test_a_suite_that_ran_out_of_time_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip = JUNIT.format('<skipped message="the time limit is spent"/>')
    scripted(monkeypatch, lambda _, junit: f"open({str(junit)!r}, 'w').write({skip!r})")
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks"]) == 0
    assert log_of(tmp_path)["blocks"]["complete"] is False


def test_a_failing_test_and_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda _, path: noting(path, FAILED, 1))
    assert gpu.main([*QUICK, "--output", str(tmp_path / "a"), "--stages", "tests"]) == 1
    assert lane_of(tmp_path / "a")["failures"] == {"b": "assert 1 == 2"}
    # It is complete, and stays red without being run again.
    begun = scripted(monkeypatch, passing)
    assert gpu.main([*QUICK, "--output", str(tmp_path / "a"), "--stages", "tests"]) == 1
    assert begun == []
    # What crashes is begun again a few times; then the other stages run all the same.
    begun = scripted(
        monkeypatch, lambda stage, path: "import os; os.abort()" if stage != "models" else passing(stage, path)
    )
    assert gpu.main([*QUICK, "--output", str(tmp_path / "b"), "--stages", "tests,blocks,models"]) == 1
    assert begun == ["tests", *["blocks"] * gpu.ATTEMPTS, "models"]
    assert {name: each["complete"] for name, each in log_of(tmp_path / "b").items()} == {
        **{"tests": False, "blocks": False},
        "models": True,
    }


def test_a_suite_whose_cases_cannot_be_begun_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = JUNIT.format('<error message="failed on setup"/>')
    scripted(monkeypatch, lambda _, junit: f"open({str(junit)!r}, 'w').write({error!r}); raise SystemExit(1)")
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks"]) == 1
    assert log_of(tmp_path)["blocks"]["complete"] is False


def test_results_of_other_versions_and_a_broken_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*QUICK, "--output", str(tmp_path), "--stages", "blocks"]
    begun = scripted(monkeypatch, passing)
    path = tmp_path / "interpreter" / "gpu.json"
    for spoil in (lambda text: text.replace('"torch": "', '"torch": "0.'), lambda text: text[: len(text) // 2]):
        assert gpu.main(arguments) == 0
        path.write_text(spoil(path.read_text()))
        begun.clear()
        assert gpu.main(arguments) == 0
        assert begun == ["blocks"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--device cpu: the interpreter is slow, expected --quick"),
        ([], "--device auto: there is no GPU here; --device cpu --quick tries this without one"),
        ([*QUICK, "--budget", "soon"], "argument --budget: expected a time such as 90s, 5m or 1h, got 'soon'"),
        ([*QUICK, "--stages", "blocks,lunch"], "unknown lunch, expected some of tests, blocks, calls, nonlocal"),
        ([*QUICK, "--output", __file__], "--output: expected a folder, got the file"),
    ],
)
def test_bad_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_without_pytest_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else name)
    with pytest.raises(SystemExit):
        gpu.main(QUICK)
    assert "expected pytest and pytest-benchmark, pytest_benchmark cannot be imported" in capsys.readouterr().err


def test_an_interruption_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "interpreter" / "blocks.json"
    hanging = f"""
import os, pathlib, signal, time
pathlib.Path({str(file)!r}).write_text('{{"cases": {{}}}}')
os.kill({os.getpid()}, signal.SIGINT)
time.sleep(600)
"""
    scripted(monkeypatch, lambda *_: hanging)
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,calls"]) == 0
    printed = capsys.readouterr().out
    assert "== claims" in printed
    assert "Not complete: blocks, calls" in printed
    assert file.exists()
    assert archived(tmp_path) == ["interpreter", "interpreter/blocks.json", "interpreter/gpu.json"]
    # As it was before: the signal is again the caller's.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
