"""One command for a GPU: its stages, what a crash and a cut-off leave, and going on."""

from __future__ import annotations

import os
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu

QUICK = ["--device", "cpu", "--quick"]
TESTS = """
import os
import pytest

@pytest.mark.parametrize("i", range(3))
def test_first(i):
    if i == 1:
        os._exit(9)

@pytest.mark.parametrize("i", range(3))
def test_second(i):
    assert i != 1, "one is wrong"

def test_third():
    pytest.skip("not here")
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command does to the environment ends with the test."""
    for name in ("TRITON_INTERPRET", "TRITON_ATTN_BACKEND", "TRITON_ATTN_CACHE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(gpu, "GRACE", 5.0)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


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
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--budget", "120s", "--stages", "calls,tests,blocks"]) == 1
    # What a stage leaves is the others'.
    assert begun == [("tests", 1040.0), ("blocks", 1010.0 + 110 * 3 / 4), ("calls", 1120.0)]
    monkeypatch.setattr(gpu, "stage", lambda *_: True)
    assert gpu.main([*QUICK, "--output", str(tmp_path)]) == 0

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "stage", interrupted)
    capsys.readouterr()
    assert gpu.main([*QUICK, "--output", str(tmp_path), "--stages", "nonlocal,models"]) == 0
    said = capsys.readouterr().out
    assert "Cut off; not run: nonlocal, models" in said
    assert "se, both ways" in said  # the claims are judged all the same
    with tarfile.open(tmp_path / "interpreter.tar.gz") as packed:
        assert sorted(packed.getnames())[1:] == [f"interpreter/{name}.json" for name in ("blocks", "calls", "tests")]


def test_what_a_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def run(commands: list[list[str]], _: float) -> list[int | None]:
        ran.extend(commands)
        return [statuses.pop(0)]

    monkeypatch.setattr(gpu, "run", run)
    statuses: list[int | None] = [0, 5, 1, None]
    quick = [True, False, False, False]
    assert [gpu.stage("calls", tmp_path / "cpu", 7.0, each) for each in quick] == [True, True, False, False]
    assert all("benchmarks/timed/bench_blocks.py" in words and "--until=7.0" in words for words in ran)
    assert ["tiny" in words for words in ran] == quick
    assert all(str(tmp_path) in words for words in ran)


def test_what_crashes_is_begun_again(capfd: pytest.CaptureFixture[str]) -> None:
    end = time.time() + 60
    assert gpu.run([python("print('ran'); import os; os._exit(9)"), python("raise SystemExit(1)")], end) == [9, 1]
    assert capfd.readouterr().out.count("ran") == gpu.ATTEMPTS


def test_what_is_cut_off_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its time is over as soon as it waits, whenever that is.
    clock = SimpleNamespace(time=lambda: 100.0 * (tmp_path / "waits").exists(), sleep=time.sleep)
    monkeypatch.setattr(gpu, "time", clock)
    monkeypatch.setattr(gpu, "GRACE", 3.0)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    program = f"""
import pathlib, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs behind itself has it ignored
child = subprocess.Popen([sys.executable, "-c", {child!r}])
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
try:
    pathlib.Path({str(tmp_path / "waits")!r}).touch()
    child.wait()
except KeyboardInterrupt:
    pathlib.Path({str(tmp_path / "told")!r}).touch()  # first it is asked, and may write down what there is
    child.wait()
"""
    assert gpu.run([python(program)], 1.0) == [None]
    assert (tmp_path / "told").exists()
    for _ in range(100):
        try:
            os.kill(int((tmp_path / "pid").read_text()), 0)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the child lives")


def test_the_lane_goes_on_behind_a_crash(tmp_path: Path) -> None:
    (tmp_path / "test_toys.py").write_text(TESTS)
    record = tmp_path / "tests.jsonl"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu", "-p", "no:cacheprovider"]
    words += ["--rootdir", str(tmp_path), str(tmp_path / "test_toys.py"), f"--record={record}"]
    words += ["-p", "no:randomly", "-p", "no:xdist", "-p", "no:benchmark"]
    assert gpu.run([words], time.time() + 60) == [1]
    order = [line["test"].rpartition("::")[2] for line in gpu.lines(record) if "outcome" in line]
    # The first case of every function, then the second of every; not the one that ended the process.
    assert order == [*("test_first[0]", "test_second[0]", "test_third"), "test_second[1]", "test_first[2]", *order[5:]]
    found = gpu.outcome(record)
    assert (found["passed"], found["failed"], found["skipped"]) == (4, 2, 1)
    texts = list(found["failures"].values())
    assert texts[0] == "the process ended while it ran"
    assert "one is wrong" in texts[1]
    assert found["skips"] == ["Skipped: not here"]


class Item:
    """Stands for a test."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_parts_are_all_and_nothing_twice(tmp_path: Path) -> None:
    record = tmp_path / "tests.jsonl"
    names = [f"test_a[{i}]" for i in range(5)] + [f"test_b[{i}]" for i in range(2)]
    # One ended the process, another was cut off, and the process ended within a line.
    record.write_text('{"test": "test_a[0]"}\n{"test": "test_a[1]", "outcome": "cut off"}\n{"test": "test_')
    assert gpu.outcome(record)["failures"] == {"test_a[0]": gpu.CRASHED}
    seen = []
    for part in range(3):
        options = {"--shard": f"{part}/3", "--record": record}
        hook = SimpleNamespace(pytest_deselected=lambda items: None)  # noqa: ARG005
        config: Any = SimpleNamespace(getoption=options.get, hook=hook)
        items: Any = [Item(name) for name in names]
        gpu.pytest_collection_modifyitems(config, items)
        seen += [each.nodeid for each in items]
    assert sorted(seen) == sorted(names[1:])
    assert seen == ["test_b[1]", "test_a[4]", "test_b[0]", "test_a[2]", "test_a[1]", "test_a[3]"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--device cpu: the interpreter is slow, expected --quick"),
        ([], "--device cuda: there is no GPU here; --device cpu --quick tries this without one"),
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
