"""Everything that only a GPU can tell, in one command: ``python -m benchmarks.gpu --budget 8m --output DIR``.

Runs the gpu test lane, in several processes, then the suites of blocks, calls, non-local, networks and tuning at what
the claims are about, each in a process of its own, and ends with the claims: goal, measured, pass or fall short. Every
stage writes its file as it goes, ``DIR/<device>/<stage>.json``; one that was cut off, or that crashed, is gone on with
by a second call, one that was finished with these versions is not run again. Behind every stage, and however all of it
ends, the files are there as one, too: ``DIR/<device>.tar.gz``. Nothing is installed or fetched.

``--device cpu --quick`` takes the same way under Triton's interpreter, at tiny sizes: what it times is no speed.
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
import tempfile
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeGuard

from benchmarks import measurement
from benchmarks.claims import ResultError, as_text, judge, load
from benchmarks.files import RESULTS, versions, write
from benchmarks.lane import LATE, Record
from triton_attn import backend
from triton_attn.files import new_file
from triton_attn.tune_command import duration
from triton_attn.tuning import tables

ROOT = Path(__file__).resolve().parents[1]
GRACE = 45.0  # seconds that a stage has, behind its limit, for the case at work; a first call takes 30 of them
LEAST = 10.0  # seconds with which a stage is begun
ATTEMPTS = 4  # at a stage that crashes
MOST_PARTS = 8  # of the test lane: each holds a few GB of the GPU's memory
SHOWN = 400  # characters of a test's failure on the terminal; its file has more
# pytest's exit statuses: all is well, or there was nothing to run; a test failed; an error outside of tests.
WELL, FAILED, ERRORS = (0, 5), 1, 3
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Stage:
    """A step of the run: the file it leaves, and its share of the budget."""

    name: str
    weight: float

    @property
    def is_suite(self) -> bool:
        return self.name != "tests"


STAGES = (
    Stage("tests", 2.0),
    Stage("blocks", 3.0),
    Stage("calls", 1.0),
    Stage("nonlocal", 1.5),
    Stage("models", 2.0),
    Stage("autotune", 1.5),
)


class Interrupted(BaseException):
    """Somebody wants this to end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; 0, or 1 where a test failed or a stage crashed, 2 for arguments that cannot be."""
    arguments = parse(argv)
    # Triton is imported with the first launch, later than this; children inherit it.
    for name in ("TRITON_INTERPRET", backend.VARIABLE, tables.VARIABLE):
        os.environ.pop(name, None)
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.suite import device_name, slug

    log = Log(arguments.output / slug() / "gpu.json", device_name(), fresh=arguments.fresh)
    print(f"{device_name()}, results in {log.path.parent}", flush=True)
    end = time.time() + arguments.budget
    wanted = [stage for stage in STAGES if stage.name in arguments.stages]
    left = [stage for stage in wanted if not log.is_complete(stage.name)]
    failed = False
    with archived(log.path.parent) as archive, contextlib.suppress(Interrupted), until_told():
        for stage in wanted:
            if stage not in left:
                print(f"\n== {stage.name}: complete, not run again (--fresh does)", flush=True)
                failed |= log.failed(stage.name)
                continue
            share = (end - time.time()) * stage.weight / sum(each.weight for each in left)
            failed |= not run(stage, share, log, arguments)
            left.remove(stage)
            archive()
    print("\n== claims", flush=True)
    try:
        print(as_text(judge(arguments.output, counted=RESULTS)))
    except ResultError as error:
        print(f"benchmarks.gpu: error: {error}", file=sys.stderr)
        failed = True
    print(f"\nAll of it in one file: {archive_of(log.path.parent)}")
    incomplete = [name for name in arguments.stages if not log.is_complete(name)]
    if incomplete:
        print(f"Not complete: {', '.join(incomplete)}. The same command goes on from here.")
    return int(failed)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with 2 where they cannot be."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=duration, default=480.0, metavar="TIME", help="90s, 8m, 1h (default: 8m)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds")
    parser.add_argument("--stages", type=_stages, default=[stage.name for stage in STAGES], metavar="A,B")
    parser.add_argument("--fresh", action="store_true", help="run stages again that are complete")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device cpu: the interpreter is slow, expected --quick beside it")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: there is no GPU here; --device cpu --quick tries this without one")
    absent = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if absent:
        parser.error(f"expected pytest and pytest-benchmark, {' and '.join(absent)} cannot be imported")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output: expected a folder, got the file {arguments.output}")
    return arguments


def _stages(text: str) -> list[str]:
    known = [stage.name for stage in STAGES]
    unknown = sorted(set(text.split(",")) - set(known))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}, expected some of {', '.join(known)}")
    return [name for name in known if name in text.split(",")]


class Log:
    """``gpu.json``: which stages were finished, on this device with these versions."""

    def __init__(self, path: Path, device: str, fresh: bool) -> None:
        self.path = path
        self.head = {"device": device, "versions": versions("timm", "CUDA", "ROCm")}
        self.stages: dict[str, dict[str, Any]] = {}
        if path.exists() and not fresh:
            try:
                found = load(path)
            except ResultError as error:
                print(f"made anew: {error}", file=sys.stderr)
                return
            if all(found.get(key) == value for key, value in self.head.items()):
                self.stages = found["stages"]

    def is_complete(self, name: str) -> bool:
        return bool(self.stages.get(name, {}).get("complete"))

    def failed(self, name: str) -> bool:
        return bool(self.stages.get(name, {}).get("exit"))

    def note(self, name: str, **what: Any) -> None:
        """Write down how a stage ended."""
        self.stages[name] = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **what}
        write(self.path, json.dumps({**self.head, "stages": self.stages}, indent=1) + "\n")


def run(stage: Stage, seconds: float, log: Log, arguments: argparse.Namespace) -> bool:
    """Run a stage for about so many seconds; whether nothing failed in it."""
    if seconds < LEAST:
        print(f"\n== {stage.name}: not begun, {max(seconds, 0):.0f} s are left for it", flush=True)
        return True
    print(f"\n== {stage.name}, {seconds:.0f} s", flush=True)
    begun, anew = time.time(), stage.name not in log.stages
    end = begun + seconds
    log.note(stage.name, complete=False, exit=0)  # what an interruption leaves
    if arguments.fresh:
        (log.path.parent / f"{stage.name}.json").unlink(missing_ok=True)
    ending = run_suite(stage, end, arguments) if stage.is_suite else run_tests(end, log, anew)
    taken = time.time() - begun
    log.note(stage.name, complete=ending.complete, exit=ending.status, seconds=round(taken, 1))
    if not ending.complete:
        how = f"crashed with exit status {ending.status}" if ending.crashed else "cut off"
        print(f"== {stage.name}: {how} after {taken:.0f} s", flush=True)
    return ending.status in WELL


@dataclass(frozen=True)
class Ending:
    """How a stage ended: with pytest's exit status, 0 where it was cut off with nothing that failed."""

    status: int
    late: bool

    @property
    def crashed(self) -> bool:
        return self.status not in (*WELL, FAILED)

    @property
    def complete(self) -> bool:
        return not self.late and not self.crashed


def run_suite(stage: Stage, end: float, arguments: argparse.Namespace) -> Ending:
    """Run a suite, again and again where it crashes: it goes on behind the case that did it."""
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory() as folder:
            junit = Path(folder) / "junit.xml"
            status = wait(start(command(stage, end, junit, arguments)), end + GRACE)
            ending = ending_of(status, junit)
        if not ending.crashed or time.time() > end:
            break
        print(f"== {stage.name}: crashed with exit status {ending.status}, and goes on", flush=True)
    return ending


def run_tests(end: float, log: Log, anew: bool) -> Ending:
    """Run the gpu lane in parts side by side: most of its time it compiles, on one core each.

    ``anew`` is that what earlier calls found is of other versions, or not wanted.
    """
    from benchmarks.suite import on_gpu

    path = log.path.parent / "tests.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if anew:
        path.unlink(missing_ok=True)
    parts = max(1, min(MOST_PARTS, (os.cpu_count() or 1) // 2)) if on_gpu() else 1
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(part) for part in range(parts)]
        statuses = side_by_side([(lane_command(path, part, parts, end), logs[part]) for part in range(parts)], end)
        record = Record(path)
        outcome = record.outcome()
        for status, said in zip(statuses, logs, strict=True):
            if has_crashed(status):
                print(f"... {said.read_text()[-3000:]}")
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write(log.path.parent / "tests.json", json.dumps({**log.head, "date": date, **outcome}, indent=1) + "\n")
    print(f"{outcome['passed']} passed, {outcome['failed']} failed, {outcome['skipped']} skipped")
    for test, text in outcome["failures"].items():
        print(f"FAILED {test}\n{textwrap.indent(text[-SHOWN:], '    ')}")
    crashes = [status for status in statuses if has_crashed(status)]
    status = crashes[0] if crashes else FAILED if outcome["failures"] else 0
    return Ending(status, late=any(status in (None, LATE) for status in statuses))


def has_crashed(status: int | None) -> TypeGuard[int]:
    """Whether a part of the lane ended otherwise than by its tests or its time."""
    return status not in (None, *WELL, FAILED, LATE)


def lane_command(record: Path, part: int, parts: int, end: float) -> list[str]:
    """What runs a part of the lane."""
    words = [*PYTEST, "tests/gpu", "--lane", "gpu", "--tb=short", "-p", "benchmarks.lane", f"--record={record}"]
    return [*words, f"--shard={part + 1}/{parts}", f"--until={end}"]


def side_by_side(commands: Sequence[tuple[list[str], Path]], end: float) -> list[int | None]:
    """Run commands with their output in files, each again where it crashes; their exit statuses, None if cut off."""
    running = [start(words, output) for words, output in commands]
    attempts = [1] * len(running)
    try:
        while any(each.poll() is None for each in running) and time.time() < end + GRACE:
            time.sleep(0.1)
            for i, (words, output) in enumerate(commands):
                if has_crashed(running[i].poll()) and attempts[i] < ATTEMPTS and time.time() < end:
                    running[i], attempts[i] = start(words, output), attempts[i] + 1
        return [each.poll() for each in running]
    finally:
        for each in running:
            end_group(each)


def command(stage: Stage, end: float, junit: Path, arguments: argparse.Namespace) -> list[str]:
    """What runs a suite."""
    suite = [*PYTEST, f"--junit-xml={junit}", f"benchmarks/bench_{stage.name}.py"]
    suite += ["--results", str(arguments.output.resolve()), f"--until={end}"]
    suite += ["--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds"]
    suite += ["--keep"]  # it goes on behind what is there
    return [*suite, "--size", "tiny", "--rounds", "2"] if arguments.quick else [*suite, "--size", "goal"]


def start(words: list[str], output: Path | None = None) -> subprocess.Popen[bytes]:
    """Begin a command in a group of its own, so that what it starts ends with it; its output is streamed or kept."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if output is None:
        return subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    with output.open("ab") as file:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, start_new_session=True, stdout=file, stderr=subprocess.STDOUT
        )


def wait(process: subprocess.Popen[bytes], end: float) -> int | None:
    """Its exit status, or None if its time was over."""
    try:
        return process.wait(max(end - time.time(), 0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs, and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ending_of(status: int | None, junit: Path) -> Ending:
    """How a suite ended: one whose cases could not even be begun has crashed."""
    try:
        found = ElementTree.parse(junit).getroot()
    except (OSError, ElementTree.ParseError):
        return Ending(status or 0, late=status is None)
    late = any(measurement.LATE in (each.get("message") or "") for each in found.iter("skipped"))
    errors = status == FAILED and any(True for _ in found.iter("error"))
    return Ending(ERRORS if errors else status or 0, late=late or status is None)


def archive_of(folder: Path) -> Path:
    """The file that holds a folder."""
    return folder.with_name(f"{folder.name}.tar.gz")


@contextlib.contextmanager
def archived(folder: Path) -> Iterator[Callable[[], None]]:
    """Within this, what is given puts all of a folder into its archive; so does the end, whatever ended it."""

    def archive() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(archive_of(folder)) as file, tarfile.open(file, "w:gz") as packed:
            packed.add(folder, folder.name)

    try:
        yield archive
    finally:
        archive()


@contextlib.contextmanager
def until_told() -> Iterator[None]:
    """Within this, an interrupt or a request to end raises :class:`Interrupted`."""

    def stop(*_: object) -> None:
        raise Interrupted

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


if __name__ == "__main__":
    sys.exit(main())
