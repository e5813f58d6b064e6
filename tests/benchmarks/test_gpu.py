"""One command for a GPU: its stages, what a cut-off leaves, and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import STAGES, Stage

ROOT = Path(__file__).parents[2]
JUNIT = '<testsuites><testsuite><testcase classname="a" name="b">{}</testcase></testsuite></testsuites>'
QUICK = ["--device", "cpu", "--quick"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command does to the environment ends with the test."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "LEAST", 0.0)


Script = Callable[[Stage, Path], str]


def scripted(monkeypatch: pytest.MonkeyPatch, script: Script) -> list[str]:
    """Stages run these Python programs in place of pytest; returns the names of those that were begun."""
    begun: list[str] = []

    def command(stage: Stage, _: float, junit: Path, __: object) -> list[str]:
        begun.append(stage.name)
        return [sys.executable, "-c", script(stage, junit)]

    monkeypatch.setattr(gpu, "command", command)
    return begun


def passing(_: Stage, junit: Path) -> str:
    return f"open({str(junit)!r}, 'w').write({JUNIT.format('')!r})"


def log_of(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "interpreter" / "gpu.json").read_text())["stages"]


def test_stages_in_order_and_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = scripted(monkeypatch, passing)
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,tests"]) == 0
    assert begun == ["tests", "blocks"]
    assert {name: each["complete"] for name, each in log_of(tmp_path).items()} == {"tests": True, "blocks": True}
    tests = json.loads((tmp_path / "interpreter" / "tests.json").read_text())
    assert (tests["passed"], tests["failed"], tests["skipped"]) == (1, 0, 0)
    begun.clear()
    assert gpu.main([*QUICK, "--output", str(tmp_path)]) == 0
    assert begun == ["nonlocal", "models", "autotune"]
    begun.clear()
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--fresh"]) == 0
    assert begun == [stage.name for stage in STAGES]


def test_a_stage_that_is_cut_off_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = scripted(
        monkeypatch,
        lambda stage, junit: "import time; time.sleep(60)" if stage.name == "blocks" else passing(stage, junit),
    )
    start = time.monotonic()
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,models", "--budget", "3s"]) == 0
    assert time.monotonic() - start < 20
    assert {name: each["complete"] for name, each in log_of(tmp_path).items()} == {"blocks": False, "models": True}
    assert "Not complete: blocks" in capfd.readouterr().out
    begun.clear()
    scripted_again = scripted(monkeypatch, passing)
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks,models"]) == 0
    assert scripted_again == ["blocks"]


def test_a_suite_that_ran_out_of_time_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip = JUNIT.format('<skipped message="the time limit is spent"/>')
    scripted(monkeypatch, lambda _, junit: f"open({str(junit)!r}, 'w').write({skip!r})")
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "blocks"]) == 0
    assert log_of(tmp_path)["blocks"]["complete"] is False


def test_a_failing_test_and_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = JUNIT.format('<failure message="assert 1 == 2&#10;more"/>')
    program = f"open({{!r}}, 'w').write({failure!r}); raise SystemExit(1)"
    scripted(monkeypatch, lambda _, junit: program.format(str(junit)))
    assert gpu.main([*QUICK, "--output", str(tmp_path / "a"), "--stages", "tests"]) == 1
    tests = json.loads((tmp_path / "a" / "interpreter" / "tests.json").read_text())
    assert tests["failures"] == {"a::b": "assert 1 == 2"}
    # It is complete, and stays red without being run again.
    begun = scripted(monkeypatch, passing)
    assert gpu.main([*QUICK, "--output", str(tmp_path / "a"), "--stages", "tests"]) == 1
    assert begun == []
    # After a crash the other stages run all the same, and it is run again.
    begun = scripted(
        monkeypatch, lambda stage, junit: "import os; os.abort()" if stage.name == "blocks" else passing(stage, junit)
    )
    assert gpu.main([*QUICK, "--output", str(tmp_path / "b"), "--stages", "blocks,models"]) == 1
    assert begun == ["blocks", "models"]
    assert log_of(tmp_path / "b")["blocks"]["complete"] is False


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
        ([*QUICK, "--stages", "blocks,lunch"], "unknown lunch, expected some of tests, blocks, nonlocal"),
        ([*QUICK, "--output", __file__], "--output: expected a folder, got the file"),
    ],
)
def test_bad_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def run(folder: Path, *words: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON", "PYTEST"))}
    command = [sys.executable, "-m", "benchmarks.gpu", *QUICK, "--output", str(folder), *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**kept, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_interruption_leaves_what_was_measured(tmp_path: Path) -> None:
    process = run(tmp_path, "--stages", "blocks")
    file = tmp_path / "interpreter" / "blocks.json"
    deadline = time.monotonic() + 90
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert json.loads(file.read_text())["cases"]
    assert "== claims" in printed
    assert "Not complete: blocks" in printed


def test_all_of_it_without_a_gpu(tmp_path: Path) -> None:
    start = time.monotonic()
    process = run(tmp_path, "--budget", "8m")
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    assert time.monotonic() - start < 180
    folder = tmp_path / "interpreter"
    assert sorted(path.name for path in folder.iterdir()) == [
        "autotune.json",
        "blocks.json",
        "gpu.json",
        "models.json",
        "nonlocal.json",
        "tests.json",
        "tuned.json",
    ]
    assert list(log_of(tmp_path)) == [stage.name for stage in STAGES]
    assert all(each["complete"] for each in log_of(tmp_path).values())
    for suite in ("blocks", "nonlocal", "models"):
        for case in json.loads((folder / f"{suite}.json").read_text())["cases"].values():
            assert {"ours", "eager"} <= case["seconds"].keys()
            assert case["not_timed"] == {}
    autotune = json.loads((folder / "autotune.json").read_text())
    assert autotune["first_call"]["with_table"] > 0
    assert all(each["configs"] > 1 for each in autotune["cases"].values())
    # The claims are judged, and none of a GPU's is said to be measured.
    assert "se, forward + backward" in printed
    assert "se, traffic" in printed
    assert "0 falls short" in printed
