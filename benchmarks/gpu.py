"""Everything that only a GPU can tell, in one command: ``python -m benchmarks.gpu --budget 8m --output DIR``.

Runs the gpu test lane, then blocks, calls, non-local, networks and tuning at what the claims are about, each in
processes of its own with a share of the time, and ends with the claims. Every stage writes its file as it goes, into
``DIR/<device>``; whatever ends it, all of them are in ``DIR/<device>.tar.gz``. A second call goes on behind the tests
and cases that the files have. Nothing is installed or fetched.

``--device cpu --quick`` takes the same way under Triton's interpreter, at tiny sizes: what it times is no speed.

The lane runs in parts side by side, as most of its time is the compiler's. Their pytest has this file as a plugin
(``-p benchmarks.gpu``): of every test function the first case comes first, and each test is a line of JSON as it begins
and as it ends, so that no crash and no cut-off loses what was found.
"""

from __future__ import annotations

import argparse
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

from benchmarks.files import RESULTS, ROOT, device_name, on_gpu, slug, today, versions, write
from triton_attn import backend
from triton_attn.files import new_file
from triton_attn.tune_command import duration
from triton_attn.tuning import tables

# By stage its share of the time, in the order of want.
STAGES = {"tests": 2.0, "blocks": 3.0, "calls": 1.0, "nonlocal": 1.5, "models": 2.0, "tuning": 1.5}
FILES = {"blocks": "blocks", "calls": "blocks", "nonlocal": "nonlocal", "models": "models", "tuning": "tuning"}
GRACE = 30.0  # seconds behind its limit that the case at work has, and as many to write down what there is
ATTEMPTS = 4  # at a stage that crashes: it goes on behind the test or case that did it
PARTS = 8  # of the lane at most: each holds a few GB of the GPU's memory
TEXT = 1500  # characters of a failure
CRASHED = "the process ended while it ran"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
ENDED = (0, 1, 5)  # pytest's exit statuses: all is well, something failed, nothing was left to run
LATE, LOST = 6, 3  # of the lane's: its time is over; the GPU answers no more


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; 1 where a test failed or a stage crashed, 2 for arguments that cannot be."""
    arguments = parse(argv)
    # Triton is imported with the first launch, later than this; children inherit it.
    for name in ("TRITON_INTERPRET", backend.VARIABLE, tables.VARIABLE):
        os.environ.pop(name, None)
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    folder = arguments.output.resolve() / slug()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{device_name()}, results in {folder}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    end, failed, left = time.time() + arguments.budget, False, list(arguments.stages)
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
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds")
    parser.add_argument("--stages", type=_stages, default=list(STAGES), metavar="A,B")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device cpu: the interpreter is slow, expected --quick beside it")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here; --device cpu --quick tries this without one")
    if importlib.util.find_spec("pytest_benchmark") is None:
        parser.error("expected pytest-benchmark, it cannot be imported")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output: expected a folder, got the file {arguments.output}")
    return arguments


def _stages(text: str) -> list[str]:
    if unknown := sorted(set(text.split(",")) - set(STAGES)):
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}, expected some of {', '.join(STAGES)}")
    return [name for name in STAGES if name in text.split(",")]


def stage(name: str, folder: Path, end: float, quick: bool) -> bool:
    """Run a stage; whether nothing failed in it."""
    if name != "tests":
        words = [*PYTEST, f"benchmarks/timed/bench_{FILES[name]}.py", "-k", f"test_{name}", "--keep"]
        words += ["--results", str(folder.parent), f"--until={end}", "--benchmark-columns=median,iqr,rounds"]
        words += ["--size", "tiny", "--rounds", "2"] if quick else ["--size", "goal"]
        return run([words], end)[0] in (0, 5)
    record = folder / "tests.jsonl"
    parts = max(1, min(PARTS, (os.cpu_count() or 1) // 2)) if on_gpu() else 1
    words = [*PYTEST, "tests/gpu", "--lane", "gpu", "--tb=short", "-p", "benchmarks.gpu", f"--record={record}"]
    try:
        statuses = run([[*words, f"--shard={part}/{parts}", f"--until={end}"] for part in range(parts)], end)
    finally:
        found = outcome(record)
        head = {"device": device_name(), "versions": versions("CUDA", "ROCm"), "date": today()}
        write(folder / "tests.json", json.dumps({**head, **found}, indent=1) + "\n")
    print(f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped")
    return not found["failed"] and all(status in (*ENDED, LATE) for status in statuses)


def run(commands: Sequence[list[str]], end: float) -> list[int | None]:
    """Run commands side by side, each again where it crashes; their exit statuses, None where it was cut off.

    At the end of their time they are interrupted, which pytest writes down; then killed, with all that they started.
    """
    begun = [_start(words) for words in commands]
    attempts = [1] * len(begun)
    try:
        while any(each.poll() is None for each in begun) and time.time() < end + GRACE:
            time.sleep(0.1)
            for i, words in enumerate(commands):
                crashed = begun[i].poll() not in (None, *ENDED, LATE)
                if crashed and attempts[i] < ATTEMPTS and time.time() < end:
                    print(f"== crashed with exit status {begun[i].poll()}, and goes on", flush=True)
                    begun[i], attempts[i] = _start(words), attempts[i] + 1
        return [each.poll() for each in begun]
    finally:
        for how, seconds in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            running = [each for each in begun if each.poll() is None]
            for each in running:
                os.killpg(each.pid, how)
            for each in running:
                try:
                    each.wait(seconds)
                except subprocess.TimeoutExpired:
                    print("== it does not end, and is killed", flush=True)


def _start(words: list[str]) -> subprocess.Popen[bytes]:
    """Begin a command in a group of its own."""
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True)


def archive(folder: Path) -> None:
    """All of a folder in one file beside it."""
    with new_file(folder.with_name(f"{folder.name}.tar.gz")) as file, tarfile.open(file, "w:gz") as packed:
        packed.add(folder, folder.name)


def lines(record: Path) -> Iterator[dict[str, Any]]:
    """Of tests begun and ended."""
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:  # the process ended within the line
            continue


def outcome(record: Path) -> dict[str, Any]:
    """How many passed, failed and were skipped, what failed, and why others were skipped."""
    ended = {line["test"]: {"outcome": "failed", "text": CRASHED, **line} for line in lines(record)}  # by the last line
    failures = {test: line["text"] for test, line in ended.items() if line["outcome"] == "failed"}
    by = Counter(line["outcome"] for line in ended.values())
    skips = sorted({line["text"] for line in ended.values() if line["outcome"] == "skipped"})
    counts = {"passed": by["passed"], "failed": len(failures), "skipped": by["skipped"]}
    return {**counts, "failures": dict(sorted(failures.items())), "skips": skips}


# The plugin.


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--record", type=Path, metavar="FILE", help="of tests begun and ended, which are not run again")
    group.addoption("--shard", default="0/1", metavar="I/N", help="run the I-th of N parts, counted from 0")
    group.addoption("--until", type=float, metavar="TIME", help="begin no test after that, as date +%%s has it")


@pytest.hookimpl(trylast=True)  # behind the choice of the lane
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """This part's tests that were not begun before, the first cases of all functions first."""
    seen: Counter[str] = Counter()
    order = {}
    for item in items:
        function = item.nodeid.partition("[")[0]
        order[item] = seen[function]
        seen[function] += 1
    part, parts = map(int, config.getoption("--shard").split("/"))
    done = {line["test"]: line.get("outcome") != "cut off" for line in lines(config.getoption("--record"))}
    own = [each for each in sorted(items, key=order.__getitem__)[part::parts] if not done.get(each.nodeid)]
    config.hook.pytest_deselected(items=[each for each in items if each not in own])
    items[:] = own


def note(config: pytest.Config, **line: Any) -> None:
    """Append a line; several processes may."""
    file = os.open(config.getoption("--record"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, (json.dumps(line) + "\n").encode())
    os.close(file)


REPORTS = pytest.StashKey[list[pytest.TestReport]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    item.stash.setdefault(REPORTS, []).append(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Write a test down; stop where the time is over, or behind what as a rule makes all others fail, too."""
    note(item.config, test=item.nodeid)
    try:
        result = yield
    except KeyboardInterrupt:  # the next call runs it
        note(item.config, test=item.nodeid, outcome="cut off")
        raise
    reports = item.stash.get(REPORTS, [])
    said = next((each for each in reports if each.failed), next((each for each in reports if each.skipped), None))
    how, text = "passed", ""
    if said is not None:
        how = "failed" if said.failed else "skipped"
        text = said.longrepr[2] if isinstance(said.longrepr, tuple) else said.longreprtext[-TEXT:]
    seconds = round(sum(each.duration for each in reports), 3)
    note(item.config, test=item.nodeid, outcome=how, seconds=seconds, text=text)
    if how == "failed" and ("CUDA error" in text or "Triton Error [CUDA]" in text):
        pytest.exit("the GPU may answer no more", returncode=LOST)
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.exit("the time limit is spent", returncode=LATE)
    return result


if __name__ == "__main__":
    sys.exit(main())
