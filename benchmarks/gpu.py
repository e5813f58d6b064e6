"""Everything that only a GPU can tell, in one command: ``python -m benchmarks.gpu --budget 8m --output DIR``.

Runs the gpu test lane, then blocks, calls, non-local, networks and tuning at what the claims are about, each in a
process of its own with a share of the time, and ends with the claims. Every stage writes its file as it goes, into
``DIR/<device>``; whatever ends it, all of them are in ``DIR/<device>.tar.gz``. A second call goes on behind the tests,
cases and searches that the files have. Nothing is installed or fetched.

``--quick`` takes the same way on a CPU, under Triton's interpreter and at tiny sizes: what it times is no speed.

The lane runs in parts side by side where pytest-xdist is there, as most of its time is the compiler's; what crashes is
a failure then, and the others go on. ``tests/gpu/record.py`` writes each test down as it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.files import RESULTS, ROOT, device_name, slug
from triton_attn import backend
from triton_attn.files import new_file
from triton_attn.tune_command import duration
from triton_attn.tuning import tables

# By stage its share of the time, in the order of want.
STAGES = {"tests": 2.0, "blocks": 3.0, "calls": 1.0, "nonlocal": 1.5, "models": 2.0, "tuning": 1.5}
GRACE = 30.0  # seconds behind its limit that the case at work has, and as many to end
ATTEMPTS = 4  # at a stage that crashes: it goes on behind the test or case that did it
PARTS = 8  # of the lane at most: each holds a few GB of the GPU's memory
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
TUNE = [sys.executable, "-m", "triton_attn.cli", "tune"]
TINY = ["--model", "resnet18", "--attention", "gate", "--where", "layer4", "--input", "2x3x32x32", "--dtype", "fp32"]
ENDED = (0, 1, 5)  # pytest's exit statuses: all is well, something failed, nothing was left to run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; 1 where a test failed or a stage crashed, 2 for arguments that cannot be."""
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


def stage(name: str, folder: Path, end: float, quick: bool) -> bool:
    """Run a stage; whether nothing failed in it."""
    if name == "tests":
        words = [*PYTEST, "tests/gpu", "--lane", "gpu", "--tb=short", "-p", "tests.gpu.record"]
        words += ["--record", str(folder / "tests.jsonl")]
        if not quick and importlib.util.find_spec("xdist"):
            words += ["-n", str(min(PARTS, (os.cpu_count() or 1) // 2)), "--dist", "load", "--maxschedchunk", "1"]
        return run(words, end - GRACE) in (0, 5)
    if name == "tuning":
        budget = f"--budget={max(end - time.time(), 1.0):.0f}s"
        return run([*TUNE, "--output", str(folder / "tuning.json"), budget, *(TINY if quick else [])], end) == 0
    file = "blocks" if name == "calls" else name
    words = [*PYTEST, f"benchmarks/timed/bench_{file}.py", "-k", f"test_{name}", "--keep", f"--until={end}"]
    words += ["--results", str(folder.parent), "--benchmark-columns=median,iqr,rounds"]
    return run([*words, *(("--size", "tiny", "--rounds", "2") if quick else ("--size", "goal"))], end) in (0, 5)


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


if __name__ == "__main__":
    sys.exit(main())
