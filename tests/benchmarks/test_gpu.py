"""One command for a GPU: its stages, what a crash and a cut-off leave, and going on."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from benchmarks import gpu
from tests.gpu import record

TESTS = """
import os
import pytest

@pytest.mark.parametrize("i", range(3))
def test_first(i):
    if i == 1:
        os.environ["LOST"] = "1"
        assert False, "a fault"

@pytest.mark.parametrize("i", range(3))
def test_second(i):
    assert i != 1, "one is wrong"

def test_third():
    if os.environ.pop("INTERRUPTED", None) is not None:
        raise KeyboardInterrupt
    pytest.skip("not here")
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command does to the environment ends with the test."""
    for name in ("TRITON_INTERPRET", "TRITON_ATTN_BACKEND", "TRITON_ATTN_CACHE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(gpu, "GRACE", 5.0)


def test_stages_come_in_the_order_of_want_and_share_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[tuple[str, float]] = []
    now = [1000.0]

    def stage(name: str, folder: Path, end: float, quick: bool) -> bool:
        begun.append((name, end))
        now[0] += 10.0
        (folder / f"{name}.json").write_text("{}")
        assert quick
        return name != "calls"

    monkeypatch.setattr(gpu, "stage", stage)
    monkeypatch.setattr(time, "time", lambda: now[0])
    quick = ["--quick", "--output", str(tmp_path)]
    assert gpu.main([*quick, "--budget", "120s", "--stages", "calls", "tests", "blocks"]) == 1
    # What a stage leaves is the others'.
    assert begun == [("tests", 1040.0), ("blocks", 1010.0 + 110 * 3 / 4), ("calls", 1120.0)]
    monkeypatch.setattr(gpu, "stage", lambda *_: True)
    assert gpu.main(quick) == 0
    monkeypatch.setattr(gpu, "stage", Mock(side_effect=KeyboardInterrupt))
    capsys.readouterr()
    assert gpu.main([*quick, "--stages", "models", "nonlocal"]) == 0
    said = capsys.readouterr().out
    assert "Cut off; not run: nonlocal, models" in said
    assert "se, both ways" in said  # the claims are judged all the same
    with tarfile.open(tmp_path / "interpreter.tar.gz") as packed:
        assert sorted(packed.getnames())[1:] == [f"interpreter/{name}.json" for name in ("blocks", "calls", "tests")]


def test_what_a_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Mock(side_effect=[0, 5, 1, None, 0])
    monkeypatch.setattr(gpu, "run", run)
    quick = [True, False, False, False]
    assert [gpu.stage("calls", tmp_path / "cpu", 7.0, each) for each in quick] == [True, True, False, False]
    ran = [call.args[0] for call in run.call_args_list]
    assert all("benchmarks/timed/bench_blocks.py" in words and "--until=7.0" in words for words in ran)
    assert ["tiny" in words for words in ran] == quick
    assert all(str(tmp_path) in words for words in ran)
    assert gpu.stage("tuning", tmp_path, time.time() + 90, True)
    command, option, path, budget = run.call_args.args[0][3:7]
    assert (command, option, path) == ("tune", "--output", str(tmp_path / "tuning.json"))
    assert 80 < float(budget.removeprefix("--budget=").removesuffix("s")) <= 90


def test_what_crashes_is_begun_again(capfd: pytest.CaptureFixture[str]) -> None:
    crash = ["sh", "-c", "echo ran; exit 9"]
    assert gpu.run(crash, time.time() + 60) == 9
    assert capfd.readouterr().out.count("ran\n") == gpu.ATTEMPTS
    assert gpu.run(["sh", "-c", "exit 1"], time.time() + 60) == 1


def test_what_is_cut_off_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its time is over as soon as it waits, whenever that is, and then when it has said that it was asked.
    wait, pid, told = subprocess.Popen.wait, tmp_path / "pid", tmp_path / "told"
    ready = iter((lambda: pid.exists() and pid.read_text().strip(), told.exists))

    def wait_until_it_waits(self: Any, seconds: float | None = None) -> int:
        is_ready = next(ready, told.exists)
        any(is_ready() or time.sleep(0.01) for _ in range(6000))
        return wait(self, min(seconds or 9.0, 0.3))

    monkeypatch.setattr(subprocess.Popen, "wait", wait_until_it_waits)
    # First it is asked, and may write down what there is.
    child = "trap '' INT; sleep 600"
    program = f"trap 'touch {told}' INT; sh -c \"{child}\" & echo $! > {pid}; while true; do wait; done"
    assert gpu.run(["sh", "-c", program], time.time()) is None
    assert told.exists()
    stat = Path("/proc") / pid.read_text().strip() / "stat"
    for _ in range(100):
        if not stat.exists() or "Z" in stat.read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the child lives")


def test_the_lane_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize() -> None:
        if os.environ.pop("LOST", None):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(os, "_exit", lambda status: pytest.exit("as if the process ended", status))
    (tmp_path / "test_toys.py").write_text(TESTS)
    (tmp_path / "pytest.ini").touch()
    words = ["-q", "-s", "-c", str(tmp_path / "pytest.ini"), "--import-mode=importlib", str(tmp_path / "test_toys.py")]
    words += ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:threadexception", "--tb=short"]
    words += ["-p", "tests.gpu.record", f"--record={tmp_path / 'tests.jsonl'}"]
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("INTERRUPTED", "")
    assert [pytest.main(words) for _ in range(4)] == [2, record.LOST, 1, 5]
    order = [test.rpartition("::")[2] for test in record.ended(tmp_path / "tests.jsonl")]
    # The first case of every function, then the second of every.
    assert order[:4] == ["test_first[0]", "test_second[0]", "test_third", "test_first[1]"]
    found = json.loads((tmp_path / "tests.json").read_text())
    assert (found["passed"], found["failed"], found["skipped"]) == (4, 2, 1)
    texts = list(found["failures"].values())
    assert "a fault" in texts[0]
    assert "one is wrong" in texts[1]
    assert found["skips"] == ["Skipped: not here"]


def test_what_failed_has_failed(tmp_path: Path) -> None:
    path, c = tmp_path / "tests.jsonl", {"test": "c", "outcome": "failed", "text": "off", "code": record.own_code()}
    # And then its process ended; of a test before it the code is another since; another process ended within a line.
    lines = [{**c, "test": "b", "code": "older"}, c, {**c, "text": "crashed"}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"test": "te')
    assert record.outcome(path)["failures"] == {"c": "off"}
    config: Any = SimpleNamespace(stash=pytest.Stash(), getoption={"--record": path}.get, pluginmanager=Mock())
    record.pytest_configure(config)
    node: Any = SimpleNamespace(workerinput={}, config=config)
    record.pytest_configure_node(node)
    assert node.workerinput == {"known": ["c"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no GPU here; --quick tries this without one"),
        (["--quick", "--budget", "soon"], "argument --budget: expected a time such as 90s, 5m or 1h, got 'soon'"),
        (["--quick", "--stages", "lunch"], "invalid choice: 'lunch'"),
        (["--quick", "--output", __file__], "--output: expected a folder, got the file"),
    ],
)
def test_bad_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
