"""Everything that only a GPU can tell, in one command: ``python -m benchmarks.gpu --budget 8m --output DIR``.

Runs the gpu test lane, then the suites of blocks, non-local, networks and tuning at what the claims are about,
each in a process of its own, and ends with the claims: goal, measured, pass or fall short. Every stage writes its file
as it goes, ``DIR/<device>/<stage>.json``; one that was cut off is gone on with by a second call, one that was finished
with these versions is not run again. Nothing is installed, and nothing is fetched.

``--device cpu --quick`` takes the same way under Triton's interpreter, at tiny sizes: what it times is no speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.claims import ResultError, as_text, judge, load
from benchmarks.files import RESULTS, versions, write
from triton_attn.tune_command import duration

ROOT = Path(__file__).resolve().parents[1]
GRACE = 45.0  # seconds that a stage has, behind its limit, for the case at work
LEAST = 10.0  # seconds with which a stage is begun


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
    Stage("nonlocal", 1.5),
    Stage("models", 2.0),
    Stage("autotune", 1.5),
)


class Interrupted(BaseException):
    """Somebody wants this to end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; 0, or 1 where a test failed or a stage crashed, 2 for arguments that cannot be."""
    arguments = parse(argv)
    on_cpu = arguments.device == "cpu"
    # Triton is imported with the first launch, later than this; children inherit it.
    if on_cpu:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    from benchmarks.suite import device_name, slug

    log = Log(arguments.output / slug() / "gpu.json", device_name(), fresh=arguments.fresh)
    print(f"{device_name()}, results in {log.path.parent}", flush=True)
    end = time.monotonic() + arguments.budget
    failed = False
    with contextlib.suppress(Interrupted), until_told():
        left = [stage for stage in STAGES if stage.name in arguments.stages]
        while left:
            stage, weight = left[0], sum(each.weight for each in left)
            if not log.is_complete(stage.name):
                share = (end - time.monotonic()) * stage.weight / weight
                failed |= not run(stage, share, log, arguments)
            else:
                print(f"\n== {stage.name}: complete, not run again (--fresh does)", flush=True)
                failed |= log.failed(stage.name)
            left.pop(0)
    print("\n== claims", flush=True)
    try:
        print(as_text(judge(arguments.output, counted=RESULTS)))
    except ResultError as error:
        print(f"benchmarks.gpu: error: {error}", file=sys.stderr)
        failed = True
    incomplete = [name for name in arguments.stages if not log.is_complete(name)]
    if incomplete:
        print(f"\nNot complete: {', '.join(incomplete)}. The same command goes on from here.")
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
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        status = call(command(stage, seconds, junit, arguments), seconds + (GRACE if stage.is_suite else 0.0))
        taken = time.monotonic() - begun
        outcome = outcome_of(junit)
    if not stage.is_suite and outcome is not None:
        write(log.path.parent / "tests.json", json.dumps({**log.head, **outcome}, indent=1) + "\n")
    cut = status is None or (outcome is not None and any("time limit is spent" in each for each in outcome["skips"]))
    # pytest's 1 is a test that failed: of a suite a provider, which its file tells; 5 is that there was nothing to run.
    crashed = status is not None and status not in (0, 1, 5)
    log.note(stage.name, complete=not cut and not crashed, exit=status or 0, seconds=round(taken, 1))
    if cut:
        print(f"== {stage.name}: cut off after {taken:.0f} s", flush=True)
    if crashed:
        print(f"== {stage.name}: crashed with exit status {status}", flush=True)
    return not crashed and status in (None, 0, 5)


def command(stage: Stage, seconds: float, junit: Path, arguments: argparse.Namespace) -> list[str]:
    """What runs a stage."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={junit}"]
    if not stage.is_suite:
        return [*pytest, "tests/gpu", "--lane", "gpu", "--tb=short", "-rf"]
    suite = [*pytest, f"benchmarks/bench_{stage.name}.py", "--results", str(arguments.output.resolve())]
    suite += ["--limit", f"{seconds:.0f}", "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds"]
    # What is complete was not begun; what is not goes on.
    suite += [] if arguments.fresh else ["--keep"]
    return [*suite, "--size", "tiny", "--rounds", "2"] if arguments.quick else [*suite, "--size", "goal"]


def call(words: list[str], seconds: float) -> int | None:
    """Run a command with its output streamed; its exit status, or None if its time was over."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # A group of its own, so that what it started ends with it.
    with subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def outcome_of(junit: Path) -> dict[str, Any] | None:
    """How many tests passed, failed and were skipped, and why; None where pytest did not come to say so."""
    try:
        cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return None
    failures, skips = {}, set()
    for case in cases:
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                failures[f"{case.get('classname')}::{case.get('name')}"] = (found.get("message") or "").split("\n")[0]
        if (found := case.find("skipped")) is not None:
            skips.add((found.get("message") or "").split("\n")[0])
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "passed": len(cases) - skipped - len(failures),
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures,
        "skips": sorted(skips),
    }


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
