"""The guard that needs no GPU and no clock: ``python -m benchmarks.counted.guard [--check | --write]``.

Counts what every block moves and launches, and compiles every kernel at some of ResNet-50's shapes
(``compile_report --quick``). --check compares both with what is committed, results/traffic.json and
results/baseline.json, by the rules of ``compare.py``; --write puts the new ones in their place. Either way it fails
where a ceiling is passed or something spills.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.compare import Comparison, Rule, compare_files
from benchmarks.files import RESULTS, ROOT, ResultError, write


@dataclass(frozen=True)
class Part:
    """What is counted in a process of its own: Triton's interpreter and its compiler cannot share one.

    ``command`` writes to OUTPUT, and makes the file ``made`` there, which the baseline is to be like.
    """

    name: str
    baseline: str
    made: str
    command: tuple[str, ...]

    def start(self, folder: Path, log: IO[str]) -> subprocess.Popen[str]:
        """Begin; what it prints goes to the log."""
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        output = str(folder / self.made if self.made == self.baseline else folder)
        return subprocess.Popen(
            [sys.executable, "-m", *self.command, "--output", output],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


PARTS = (
    Part("traffic", "traffic.json", "traffic.json", ("benchmarks.counted.traffic", "--check")),
    Part("machine code", "baseline.json", "report.json", ("benchmarks.counted.compile_report", "--quick")),
)


def run(folder: Path) -> list[str]:
    """Make the parts' files, side by side; a line for every part that failed, with what it said."""
    logs = [folder / f"{part.name}.log" for part in PARTS]
    running = []
    for part, log in zip(PARTS, logs, strict=True):
        with log.open("w") as stream:
            running.append(part.start(folder, stream))
    statuses = [process.wait() for process in running]
    return [
        f"{part.name}: `{' '.join(part.command)}` failed with exit status {status}:\n{log.read_text().rstrip()}"
        for part, log, status in zip(PARTS, logs, statuses, strict=True)
        if status
    ]


def compare(part: Part, folder: Path, results: Path) -> Comparison:
    """The part's new file beside the baseline.

    Raises:
        ResultError: there is no baseline, or it is no such file.
    """
    baseline = results / part.baseline
    if not baseline.exists():
        raise ResultError(f"{baseline}: expected the baseline, it is not there; --write makes it")
    return compare_files(baseline, folder / part.made, Rule())


def main(argv: Sequence[str] | None = None) -> int:
    """Check or write; 1 where something got worse or a part failed, 2 where there is no baseline to compare with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted.guard", description=__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the baseline (the default)")
    action.add_argument("--write", action="store_true", help="make the baseline anew, and show what that changes")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="default: benchmarks/results")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failures = run(folder)
        if failures:
            print("\n".join(failures), file=sys.stderr)
            return 1
        worse = False
        for part in PARTS:
            print(f"== {part.name}, against {part.baseline}")
            try:
                found = compare(part, folder, arguments.results)
            except ResultError as error:
                if not arguments.write:
                    print(f"benchmarks.counted.guard: error: {error}", file=sys.stderr)
                    return 2
                print(f"made anew: {error}")
            else:
                print(found.text(all_lines=False) + "\n")
                worse |= found.failed
                if found.is_stale and not arguments.write:
                    print("The baseline is not what is here any more: make it anew with --write.\n")
            if arguments.write:
                write(arguments.results / part.baseline, (folder / part.made).read_text(encoding="utf-8"))
    if arguments.write:
        print(f"Written: {', '.join(str(arguments.results / part.baseline) for part in PARTS)}")
        return 0
    print("Something got worse." if worse else "Nothing got worse.")
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
