"""The guard that needs no GPU and no clock: ``python -m benchmarks.counted.guard [--check | --write]``.

Counts what every block moves and launches, and what the gate blocks do at ResNet-50's sites, and compiles every kernel
at some of its shapes. --check compares all with what is committed, results/traffic.json, goals.json and baseline.json;
--write puts the new ones in their place. Either way it fails where a ceiling is passed, a goal is missed or something
spills. What is worse:

traffic       Any byte, sector or launch more of ours, any byte more that is kept for the backward, and a case that is
              not there any more. What eager PyTorch moves is its own affair.
goals         More bytes from the L2 cache, more launches, fewer programs, or products that leave tensor cores.
machine code  For every kernel, target, block, dtype and layout the worst of its programs: a spill more, 9 registers
              more, any fall of the occupancy bound, more than 1 KB of shared memory more, narrower loads or stores,
              tensor cores that are not used any more; and a group that is not there any more. Compared only where both
              files were made with the same Triton: another compiles otherwise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import IO, Any

from benchmarks.counted.goals import AT_LEAST
from benchmarks.files import RESULTS, ROOT, ResultError, load, write

WORSE, SAME, BETTER = "worse", "", "better"
EXACT = 1e-9  # a share of T is a quotient of integers
LET_PASS = {"registers": 8, "shared bytes": 1024}
LARGER_IS_BETTER = ("occupancy bound", "widest load", "widest store", *AT_LEAST)
WORST: dict[str, tuple[Callable[[Iterable[float]], float], str]] = {
    "registers": (max, "registers"),
    "spilled": (max, "spilled"),
    "shared bytes": (max, "shared"),
    "occupancy bound": (min, "occupancy"),
    "widest load": (min, "loads"),
    "widest store": (min, "stores"),
    "tensor cores": (min, "tensor_cores"),
}
Counts = dict[str, dict[str, float]]  # by case and quantity


def traffic(content: Mapping[str, Any]) -> Counts:
    """Of what Triton serves: T, T in whole sectors, and launches, forward and backward; and what is kept."""
    found = {}
    for row in content["rows"]:
        if row["ours"] is not None:
            tail = ", shortcut" if row["shortcut"] else ""
            counts = {"kept, T": row["ours"]["kept"]["total"]}
            for direction in ("forward", "backward"):
                each = row["ours"][direction]
                counts[f"{direction}, T"] = each["total"]
                counts[f"{direction}, T in whole sectors"] = each["total"] * each["sectors"]
                counts[f"{direction}, launches"] = each["launches"]
                counts[f"{direction}, launches over the map"] = each["map_launches"]
            found[f"{row['case']}, {content['dtype']}, {row['layout']}{tail}, {'×'.join(map(str, row['shape']))}"] = (
                counts
            )
    return found


def code(content: Mapping[str, Any]) -> Counts:
    """By kernel, target, block, dtype and layout the worst of the programs; a row may stand for several of these."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in content["rows"]:
        for own in product(*(row[key].split(", ") for key in ("blocks", "dtype", "layout"))):
            groups[", ".join([row["kernel"], row["target"], *own])].append(row)
    return {
        name: {what: worst(row[key] for row in rows) for what, (worst, key) in WORST.items()}
        for name, rows in groups.items()
    }


def goals(content: Mapping[str, Any]) -> Counts:
    """By block and site what the goals are about."""
    return {f"{row['block']}, {row['site']}": row["counts"] for row in content["rows"]}


@dataclass(frozen=True)
class Part:
    """What is counted in a process of its own: Triton's interpreter and its compiler cannot share one.

    ``command`` writes to OUTPUT, and makes the file ``made`` there, which the baseline is to be like.
    """

    name: str
    baseline: str
    made: str
    command: tuple[str, ...]
    counts: Callable[[Mapping[str, Any]], Counts]
    to_check: tuple[str, ...] = ()  # more words where nothing is written

    def start(self, folder: Path, log: IO[str], *more: str) -> subprocess.Popen[str]:
        """Begin; what it prints goes to the log."""
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        output = str(folder / self.made if self.made == self.baseline else folder)
        return subprocess.Popen(
            [sys.executable, "-m", *self.command, *more, "--output", output],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


PARTS = (
    Part(
        "traffic",
        "traffic.json",
        "traffic.json",
        ("benchmarks.counted.traffic", "--check"),
        traffic,
        ("--ours", "--some", "--workers", "2"),
    ),
    Part("goals", "goals.json", "goals.json", ("benchmarks.counted.goals",), goals, ("--some",)),
    # From PTX, which says the same as the disassembly of these programs, in a tenth of the time.
    Part(
        "machine code", "baseline.json", "report.json", ("benchmarks.counted.compile_report", "--quick", "--ptx"), code
    ),
)


def run(folder: Path, writes: bool) -> list[str]:
    """Make the parts' files, side by side; a line for every part that failed, with what it said."""
    logs = [folder / f"{part.name}.log" for part in PARTS]
    running = []
    for part, log in zip(PARTS, logs, strict=True):
        with log.open("w") as stream:
            running.append(part.start(folder, stream, *(() if writes else part.to_check)))
    statuses = [process.wait() for process in running]
    return [
        f"{part.name}: `{' '.join(part.command)}` failed with exit status {status}:\n{log.read_text().rstrip()}"
        for part, log, status in zip(PARTS, logs, statuses, strict=True)
        if status
    ]


@dataclass
class Comparison:
    """What changed, a line each; whether something got worse, and whether the baseline is not what is here any more."""

    lines: list[str] = field(default_factory=list)
    failed: bool = False
    stale: bool = False

    def note(self, line: str, verdict: str = SAME) -> None:
        """Add a line: something of the baseline is otherwise now."""
        self.lines.append(f"{verdict}: {line}" if verdict else line)
        self.failed |= verdict == WORSE
        self.stale = True


def compare(part: Part, baseline: Path, counted: Path) -> Comparison:
    """A part's new file beside the baseline.

    Raises:
        ResultError: one is not there, or is no such file.
    """
    if not baseline.exists():
        raise ResultError(f"{baseline}: expected the baseline, it is not there; --write makes it")
    contents, counts, found = [load(baseline), load(counted)], [], Comparison()
    for path, content in zip((baseline, counted), contents, strict=True):
        try:
            counts.append((content["versions"], part.counts(content)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"{path}: expected {part.name}, but {error!r} is not as it should be") from error
    (made, old), (now, new) = counts
    for name in {**made, **now}:
        if made.get(name) != now.get(name):
            found.note(f"versions differ: {name} {made.get(name)} in the baseline, {now.get(name)} here")
    if part.counts is code and made.get("triton") != now.get("triton"):
        found.note("machine code of two versions of Triton is not compared")
        return found
    for name in sorted({*old} - {*new}):
        found.note(f"not there any more: {name}", WORSE)
    for name in sorted({*new} - {*old}):
        found.note(f"new: {name}")
    for name in sorted({*old} & {*new}):
        for what, value in old[name].items():
            if verdict := judged(what, value, new[name][what]):
                found.note(f"{name}: {what} {value:.6g}, now {new[name][what]:.6g}", verdict)
    return found


def judged(what: str, old: float, new: float) -> str:
    """Whether a quantity got worse, or better."""
    if what == "tensor cores":  # how many instructions there are says nothing
        return WORSE if old and not new else SAME
    more = old - new if what in LARGER_IS_BETTER else new - old
    return WORSE if more > LET_PASS.get(what, EXACT) else BETTER if more < -EXACT else SAME


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
        failures = run(folder, arguments.write)
        if failures:
            print("\n".join(failures), file=sys.stderr)
            return 1
        worse = False
        for part in PARTS:
            baseline = arguments.results / part.baseline
            print(f"== {part.name}, against {part.baseline}")
            try:
                found = compare(part, baseline, folder / part.made)
            except ResultError as error:
                if not arguments.write:
                    print(f"benchmarks.counted.guard: error: {error}", file=sys.stderr)
                    return 2
                print(f"made anew: {error}")
            else:
                print("\n".join(found.lines or ["as before"]) + "\n")
                worse |= found.failed
                if found.stale and not arguments.write:
                    print("The baseline is not what is here any more: make it anew with --write.\n")
            if arguments.write:
                write(baseline, (folder / part.made).read_text(encoding="utf-8"))
    if arguments.write:
        print(f"Written: {', '.join(str(arguments.results / part.baseline) for part in PARTS)}")
        return 0
    print("Something got worse." if worse else "Nothing got worse.")
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
