"""Everything that only a GPU can tell, in one command: ``python -m benchmarks.gpu --budget 8m --output DIR``.

Runs the gpu test lane, then blocks, calls, non-local, networks and tuning at what the claims are about, each in a
process of its own with a share of the time, and ends with the claims. Every stage writes its file as it goes, into
``DIR/<device>``; whatever ends it, all of them are in ``DIR/<device>.tar.gz``. A second call goes on behind the tests,
cases and searches that the files have. Nothing is installed or fetched.

``--quick`` takes the same way on a CPU, under Triton's interpreter and at tiny sizes: what it times is no speed.

The lane runs in parts side by side where pytest-xdist is there, as most of its time is the compiler's. Its pytest has
this file as a plugin (``-p benchmarks.gpu``): of every test function the first case comes first, and each test is a
line of JSON as it begins and as it ends, so that no crash and no cut-off loses what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.files import LATE, RESULTS, ROOT, device_name, on_gpu, slug, today, versions, write
from triton_attn import backend
from triton_attn.files import new_file
from triton_attn.tune_command import duration
from triton_attn.tuning import tables

# By stage its share of the time, in the order of want.
STAGES = {"tests": 2.0, "blocks": 3.0, "calls": 1.0, "nonlocal": 1.5, "models": 2.0, "tuning": 1.5}
GRACE = 30.0  # seconds behind its limit that the case at work has, and as many to write down what there is
ATTEMPTS = 4  # at a stage that crashes: it goes on behind the test or case that did it
PARTS = 8  # of the lane at most: each holds a few GB of the GPU's memory
TEXT = 1500  # characters of a failure
CRASHED, CUT_OFF = "the process ended while it ran", "cut off"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
TUNE = [sys.executable, "-m", "triton_attn.cli", "tune"]
TINY = ["--model", "resnet18", "--attention", "se,gate", "--where", "layer4", "--input", "2x3x32x32", "--dtype", "fp32"]
ENDED = (0, 1, 5)  # pytest's exit statuses: all is well, something failed, nothing was left to run
LOST = 3  # the GPU answers no more


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; 1 where a test failed or a stage crashed, 2 for arguments that cannot be."""
    arguments = parse(argv)
    # Triton is imported with the first launch, later than this; children inherit it.
    for name in ("TRITON_INTERPRET", backend.VARIABLE, tables.VARIABLE):
        os.environ.pop(name, None)
    if arguments.quick:
        os.environ["TRITON_INTERPRET"] = "1"
    folder = arguments.output.resolve() / slug()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{device_name()}, results in {folder}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    end, failed, left = time.time() + arguments.budget, False, [name for name in STAGES if name in arguments.stages]
    try:
        while left:
            share = (end - time.time()) * STAGES[left[0]] / sum(STAGES[name] for name in left)
            print(f"\n== {left[0]}, {share:.0f} s", flush=True)
            failed |= not stage(left[0], folder, time.time() + share, arguments.quick)
            archive(folder)
            del left[0]
    except KeyboardInterrupt:
        print(f"\nCut off; not run: {', '.join(left)}")
    finally:
        archive(folder)
    from benchmarks.written.claims import as_text, judge

    print(f"\n== claims\n{as_text(judge(arguments.output))}")
    print(f"\nAll of it in one file: {folder}.tar.gz")
    return int(failed)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with 2 where they cannot be."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--budget", type=duration, default=480.0, metavar="TIME", help="90s, 8m, 1h (default: 8m)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="on a CPU, tiny sizes and two rounds")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    arguments = parser.parse_args(argv)
    if not arguments.quick and not torch.cuda.is_available():
        parser.error("there is no GPU here; --quick tries this without one")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output: expected a folder, got the file {arguments.output}")
    return arguments


def stage(name: str, folder: Path, end: float, quick: bool) -> bool:
    """Run a stage; whether nothing failed in it."""
    if name == "tests":
        return tests(folder, end)
    if name == "tuning":
        budget = f"--budget={max(end - time.time(), 1.0):.0f}s"
        return run([*TUNE, "--output", str(folder / "tuning.json"), budget, *(TINY if quick else [])], end) == 0
    file = "blocks" if name == "calls" else name
    words = [*PYTEST, f"benchmarks/timed/bench_{file}.py", "-k", f"test_{name}", "--keep", f"--until={end}"]
    words += ["--results", str(folder.parent), "--benchmark-columns=median,iqr,rounds"]
    return run([*words, *(("--size", "tiny", "--rounds", "2") if quick else ("--size", "goal"))], end) in (0, 5)


def tests(folder: Path, end: float) -> bool:
    """Run the lane, and write down how it went."""
    record, parts = folder / "tests.jsonl", min(PARTS, (os.cpu_count() or 1) // 2)
    words = [*PYTEST, "tests/gpu", "--lane", "gpu", "--tb=short", "-p", "benchmarks.gpu"]
    if on_gpu() and parts > 1 and importlib.util.find_spec("xdist"):
        words += ["-n", str(parts), "--dist", "load", "--maxschedchunk", "1"]
    try:
        status = run([*words, f"--record={record}", f"--until={end}"], end)
    finally:
        found = outcome(record)
        head = {"device": device_name(), "versions": versions("CUDA", "ROCm"), "date": today()}
        write(folder / "tests.json", json.dumps({**head, **found}, indent=1) + "\n")
    print(f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped")
    return not found["failed"] and status in ENDED


def run(words: list[str], end: float) -> int | None:
    """Run a command, again where it crashes; its exit status, None where it was cut off.

    At the end of its time it is interrupted, which pytest writes down; then killed, with all that it started.
    """
    for _ in range(ATTEMPTS):
        status: int | None = None
        begun = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = begun.wait(end + GRACE - time.time())
        finally:
            for how, seconds in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
                if begun.poll() is None:
                    os.killpg(begun.pid, how)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        begun.wait(seconds)
        if status is None or status in ENDED or time.time() > end:
            break
        print(f"== crashed with exit status {status}", flush=True)
    return status


def archive(folder: Path) -> None:
    """All of a folder in one file beside it."""
    with new_file(folder.with_name(f"{folder.name}.tar.gz")) as file, tarfile.open(file, "w:gz") as packed:
        packed.add(folder, folder.name)


def ended(record: Path) -> dict[str, dict[str, Any]]:
    """By test how it ended, or that it was begun; what failed has failed, whatever became of its process."""
    found: dict[str, dict[str, Any]] = {}
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        with contextlib.suppress(ValueError):  # the process ended within the line
            each = json.loads(line)
            if found.get(each["test"], {}).get("outcome") != "failed":
                found[each["test"]] = each
    return found


def outcome(record: Path) -> dict[str, Any]:
    """How many passed, failed and were skipped, what failed, and why others were skipped."""
    found = {test: {"outcome": "failed", "text": CRASHED, **line} for test, line in ended(record).items()}
    failures = {test: line["text"] for test, line in sorted(found.items()) if line["outcome"] == "failed"}
    by = Counter(line["outcome"] for line in found.values())
    skips = sorted({line["text"] for line in found.values() if line["outcome"] == "skipped"})
    counts = {"passed": by["passed"], "failed": len(failures), "skipped": by["skipped"]}
    return {**counts, "failures": failures, "skips": skips}


# The plugin.

KNOWN = pytest.StashKey[Any]()


class Record:
    """Writes tests down, in the process that is told of all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running = set[str]()

    def note(self, **line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running.add(nodeid)
        self.note(test=nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.running.discard(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext[-TEXT:]
        if text.endswith(LATE):
            self.note(test=report.nodeid, outcome=CUT_OFF)
        elif report.when == "call" or not report.passed:
            self.note(test=report.nodeid, outcome=report.outcome, text=text)

    def pytest_sessionfinish(self) -> None:
        """What an interruption cut off the next call runs again."""
        for test in self.running:
            self.note(test=test, outcome=CUT_OFF)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--record", type=Path, metavar="FILE", help="of tests begun and ended, which are not run again")
    group.addoption("--until", type=float, metavar="TIME", help="begin no test after that, as date +%%s has it")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # xdist's: all of them collect the same
        config.stash[KNOWN] = config.workerinput["known"]
    else:
        record = config.getoption("--record")
        config.stash[KNOWN] = [test for test, line in ended(record).items() if line.get("outcome") != CUT_OFF]
        config.pluginmanager.register(Record(record))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["known"] = node.config.stash[KNOWN]


@pytest.hookimpl(trylast=True)  # behind the choice of the lane
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests that were not begun before, the first cases of all functions first."""
    seen: Counter[str] = Counter()
    known, order = set(config.stash[KNOWN]), {}
    for item in items:
        function = item.nodeid.partition("[")[0]
        order[item] = seen[function]
        seen[function] += 1
    config.hook.pytest_deselected(items=[each for each in items if each.nodeid in known])
    items[:] = sorted((each for each in items if each.nodeid not in known), key=order.__getitem__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Begin nothing that is too late; behind a fault of the GPU another process goes on: in this one all would fail."""
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        item.add_marker(pytest.mark.skip(reason=LATE))
    result = yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(LOST)
    return result


if __name__ == "__main__":
    sys.exit(main())
