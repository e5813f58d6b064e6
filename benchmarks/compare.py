"""What became slower, or larger: ``python -m benchmarks.compare OLD NEW [--threshold 1.05] [--provider A,B] [--all]``.

OLD and NEW are result files, or folders of them, of which those of the same name are compared. The exit status is 1
where something got worse, 2 where nothing can be compared. What worse is:

seconds       (suites) The ratio of the medians, new over old, stands beside what the spread leaves open: from new q1 /
              old q3 to new q3 / old q1. A case is worse where even the least of that is above the threshold; where the
              ratio alone is above it the two spreads overlap, which is said ("maybe") and fails nothing. So is a ratio
              of numbers that have no spread. Only --provider's can fail; a case that only one file has is listed.
traffic       (traffic.json) Any byte, sector or launch more of ours, any byte more that is kept for the backward, and a
              case that is not there any more. What eager PyTorch moves is its own affair.
machine code  (report.json) For every kernel, target, block, dtype and layout the worst of its programs: a spill more, 9
              registers more, any fall of the occupancy bound, more than 1 KB of shared memory more, narrower loads or
              stores, tensor cores that are not used any more; and a group that is not there any more. Compared only
              where both files were made with the same Triton: another compiles otherwise.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:  # run by its path, and not with -m
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.files import ResultError, load

WORSE, MAYBE, SAME, BETTER = "worse", "maybe", "", "better"
OURS = ("ours", "ours-compile", "table", "rule")  # what users of the library wait for
REGISTERS, SHARED = 8, 1024  # so many more are let pass
EXACT = 1e-9  # a share of T is a quotient of integers


@dataclass(frozen=True)
class Line:
    """One quantity in both files. ``spread`` are the least and the most that the ratio may be."""

    case: str
    what: str
    old: float
    new: float
    verdict: str
    spread: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        """New over old."""
        return self.new / self.old if self.old else (math.inf if self.new else 1.0)

    def cells(self) -> list[str]:
        """For the table."""
        spread = f"{self.spread[0]:.3f} to {self.spread[1]:.3f}" if self.spread else ""
        return [self.case, self.what, f"{self.old:.4g}", f"{self.new:.4g}", f"{self.ratio:.3f}", spread, self.verdict]


@dataclass
class Comparison:
    """Two files of the same kind: what was compared, and what could not be. ``providers`` are all that are in them."""

    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    providers: set[str] = field(default_factory=set)

    @property
    def failed(self) -> bool:
        """Whether something got worse."""
        return bool(self.failures) or any(line.verdict == WORSE for line in self.lines)

    @property
    def is_stale(self) -> bool:
        """Whether OLD, as a baseline, is not what there is any more: something is better, new, or of other versions."""
        return bool(self.notes) or any(line.verdict == BETTER for line in self.lines)

    def note_absent(self, old: Iterable[str], new: Iterable[str], fails: bool) -> None:
        """List what only one side has; where ``fails``, the old one's cases must not go."""
        gone = [f"only in OLD: {name}" for name in sorted({*old} - {*new})]
        (self.failures if fails else self.notes).extend(gone)
        self.notes += [f"only in NEW: {name}" for name in sorted({*new} - {*old})]

    def text(self, all_lines: bool) -> str:
        """What people read: notes, the lines worst first, failures."""
        order = sorted(self.lines, key=lambda line: ((WORSE, MAYBE, SAME, BETTER).index(line.verdict), -line.ratio))
        shown = order if all_lines else [line for line in order if line.verdict or line.spread]
        same = len(order) - len(shown)
        table = _table([["case", "what", "old", "new", "new / old", "spread", ""], *(line.cells() for line in shown)])
        parts = [*self.notes, *(table if shown else []), *([f"{same} as before"] if same else [])]
        return "\n".join([*parts, *(f"{WORSE}: {failure}" for failure in self.failures)])


@dataclass(frozen=True)
class Rule:
    """What is compared how, of suites."""

    threshold: float = 1.05
    providers: tuple[str, ...] = OURS
    all_providers: bool = False
    across: bool = False


def compare_files(old: Path, new: Path, rule: Rule) -> Comparison:
    """Compare two result files.

    Raises:
        ResultError: one cannot be read, or they are not of the same kind, or not of the same device.
    """
    contents = load(old), load(new)
    kinds = [kind_of(content) for content in contents]
    for path, kind, content in zip((old, new), kinds, contents, strict=True):
        if kind is None:
            raise ResultError(
                f"{path}: expected a suite's results (suite, device, versions, cases), traffic.json or the compile "
                f"report's report.json (versions, rows), got an object of {', '.join(content) or 'nothing'}"
            )
    if kinds[0] != kinds[1]:
        raise ResultError(f"{new}: expected {kinds[0]}, as {old} has, got {kinds[1]}")
    for path, content in zip((old, new), contents, strict=True):
        try:
            READERS[kinds[0]](content, content, rule)  # what is wrong with one file is not the other's fault
        except ResultError as error:
            raise ResultError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ResultError(f"{path}: expected {kinds[0]}, but {error!r} is not as it should be") from error
    try:
        return READERS[kinds[0]](*contents, rule)
    except ResultError as error:
        raise ResultError(f"{new}: {error}") from error


def kind_of(content: Mapping[str, Any]) -> str | None:
    """What a file has: a key of ``READERS``."""
    if {"suite", "device", "cases"} <= content.keys():
        return "seconds"
    rows = content.get("rows")
    first = rows[0] if isinstance(rows, list) and rows else None
    if isinstance(first, dict) and "versions" in content:
        return "machine code" if "kernel" in first else "traffic" if "ours" in first else None
    return None


def compare_seconds(old: Mapping[str, Any], new: Mapping[str, Any], rule: Rule) -> Comparison:
    """A suite's cases, provider by provider."""
    found = Comparison(notes=_versions(old, new))
    if old["suite"] != new["suite"]:
        raise ResultError(f"expected the suite {old['suite']}, as in OLD, got {new['suite']}")
    if old["device"] != new["device"]:
        said = f"the devices differ: {old['device']} in OLD, {new['device']} in NEW"
        if not rule.across:
            raise ResultError(f"{said}; --across compares them all the same")
        found.notes.insert(0, said)
    for case in (*old["cases"].values(), *new["cases"].values()):
        found.providers |= {*case["seconds"], *case.get("not_timed", {})}
    before, after = _seconds(old), _seconds(new)
    found.note_absent(before, after, fails=False)
    for name in sorted(before.keys() & after.keys()):
        refused = new["cases"][name].get("not_timed", {})
        for provider in before[name]:
            if provider in after[name]:
                if provider in rule.providers or rule.all_providers:
                    found.lines.append(_timed(name, provider, before[name][provider], after[name][provider], rule))
            elif (reason := refused.get(provider)) and provider in rule.providers:
                found.failures.append(f"{name}: {provider} is not timed any more: {reason}")
            else:
                found.notes.append(f"only in OLD: {name}, {provider}")
        found.notes += [f"only in NEW: {name}, {each}" for each in after[name] if each not in before[name]]
    return found


def _seconds(content: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """By case and provider the median and the quartiles; the median alone where there is a single number."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, case in content["cases"].items():
        found[name] = {}
        for provider, each in case["seconds"].items():
            times = {key: each[key] for key in ("median", "q1", "q3")} if isinstance(each, dict) else {"median": each}
            found[name][provider] = {key: float(value) for key, value in times.items()}
            if not all(0 < value < math.inf for value in found[name][provider].values()):
                raise ResultError(f"expected positive numbers of seconds for {name}, {provider}, got {times}")
    return found


def _timed(case: str, provider: str, before: Mapping[str, float], after: Mapping[str, float], rule: Rule) -> Line:
    if "q1" not in before or "q1" not in after:
        return _judged(case, provider, before["median"], after["median"], (0.0, math.inf), None, rule)
    spread = after["q1"] / before["q3"], after["q3"] / before["q1"]
    return _judged(case, provider, before["median"], after["median"], spread, spread, rule)


def _judged(
    case: str,
    provider: str,
    old: float,
    new: float,
    bounds: tuple[float, float],
    shown: tuple[float, float] | None,
    rule: Rule,
) -> Line:
    verdict, ratio = SAME, new / old
    if ratio > rule.threshold:
        verdict = WORSE if bounds[0] > rule.threshold and provider in rule.providers else MAYBE
    elif bounds[1] < 1 / rule.threshold:
        verdict = BETTER
    return Line(case, provider, old, new, verdict, shown)


def compare_traffic(old: Mapping[str, Any], new: Mapping[str, Any], _: Rule) -> Comparison:
    """What ours moves, keeps and launches, exactly."""
    found = Comparison(notes=_versions(old, new))
    if old["dtype"] != new["dtype"]:
        raise ResultError(f"expected what was counted in {old['dtype']}, as OLD was, got {new['dtype']}")
    before, after = _traffic(old), _traffic(new)
    found.note_absent(before, after, fails=True)
    for case in sorted(before.keys() & after.keys()):
        for what, value in before[case].items():
            now = after[case][what]
            verdict = WORSE if now > value + EXACT else BETTER if now < value - EXACT else SAME
            found.lines.append(Line(case, what, value, now, verdict))
    return found


def _traffic(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By case, of what Triton serves: T, T in whole sectors, and launches, forward and backward; and what is kept."""
    found = {}
    for row in content["rows"]:
        if row["ours"] is not None:
            tail = ", shortcut" if row["shortcut"] else ""
            name = f"{row['case']}, {row['layout']}{tail}, {'×'.join(map(str, row['shape']))}"
            found[name] = {
                f"{direction}, {what}": value
                for direction in ("forward", "backward")
                for each in (row["ours"][direction],)
                for what, value in (
                    ("T", each["total"]),
                    ("T in whole sectors", each["total"] * each["sectors"]),
                    ("launches", each["launches"]),
                    ("launches over the map", each["map_launches"]),
                )
            }
            found[name]["kept, T"] = row["ours"]["kept"]["total"]
    return found


def compare_code(old: Mapping[str, Any], new: Mapping[str, Any], _: Rule) -> Comparison:
    """What the kernels became, where the same compiler made them."""
    found = Comparison(notes=_versions(old, new))
    before, after = _code(old), _code(new)
    if old["versions"]["triton"] != new["versions"]["triton"]:
        found.notes.append("machine code of two versions of Triton is not compared")
        return found
    found.note_absent(before, after, fails=True)
    for case in sorted(before.keys() & after.keys()):
        for what, value in before[case].items():
            now = after[case][what]
            worsening = value - now if what in LARGER_IS_BETTER else now - value
            verdict = WORSE if worsening > LET_PASS.get(what, 0) else BETTER if worsening < 0 else SAME
            if what == "tensor cores":  # how many instructions there are says nothing
                verdict = WORSE if value and not now else SAME
            found.lines.append(Line(case, what, value, now, verdict))
    return found


LARGER_IS_BETTER = ("occupancy bound", "widest load", "widest store")
LET_PASS = {"registers": REGISTERS, "shared bytes": SHARED}


def _code(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By kernel, target, block, dtype and layout the worst of the programs; a row may stand for several of these."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in content["rows"]:
        for own in product(*(row[key].split(", ") for key in ("blocks", "dtype", "layout"))):
            groups[", ".join([row["kernel"], row["target"], *own])].append(row)
    columns: dict[str, tuple[Callable[[Iterable[float]], float], str]] = {
        "registers": (max, "registers"),
        "spilled": (max, "spilled"),
        "shared bytes": (max, "shared"),
        "occupancy bound": (min, "occupancy"),
        "widest load": (min, "loads"),
        "widest store": (min, "stores"),
        "tensor cores": (min, "tensor_cores"),
    }
    return {
        name: {what: worst(row[key] for row in rows) for what, (worst, key) in columns.items()}
        for name, rows in groups.items()
    }


READERS: dict[Any, Callable[[Mapping[str, Any], Mapping[str, Any], Rule], Comparison]] = {
    "seconds": compare_seconds,
    "traffic": compare_traffic,
    "machine code": compare_code,
}


def _versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for every version that differs."""
    before, after = old["versions"], new["versions"]
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"versions differ: {each} {before.get(each)} in OLD, {after.get(each)} in NEW" for each in names]


def pairs(old: Path, new: Path) -> Iterator[tuple[str, Path | None, Path | None]]:
    """What is to be compared with what, by name; None where one side has no such file."""
    for name, path in (("OLD", old), ("NEW", new)):
        if not path.exists():
            raise ResultError(f"{name}: expected a result file or a folder of them, {path} is not there")
    if old.is_dir() != new.is_dir():
        raise ResultError(f"OLD, NEW: expected two files or two folders, got {old} and {new}")
    if not old.is_dir():
        yield new.name, old, new
        return
    found = [{str(path.relative_to(folder)): path for path in _results(folder)} for folder in (old, new)]
    if not {*found[0]} & {*found[1]}:
        raise ResultError(f"OLD, NEW: expected result files of the same names, {old} and {new} have none in common")
    for name in sorted({**found[0], **found[1]}):
        yield name, found[0].get(name), found[1].get(name)


def _results(folder: Path) -> list[Path]:
    """The result files in a folder; others (tables, logs) lie there, too."""
    return [path for path in folder.rglob("*.json") if kind_of(load(path)) is not None]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what changed; 1 where something got worse, 2 where nothing can be compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=str(__doc__).splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD", help="a result file, or a folder of them")
    parser.add_argument("new", type=Path, metavar="NEW", help="likewise")
    parser.add_argument("--threshold", type=float, default=Rule.threshold, help="of seconds (default: %(default)s)")
    parser.add_argument("--provider", metavar="A,B", help=f"whose seconds can fail (default: {','.join(OURS)})")
    parser.add_argument("--all", action="store_true", help="show all providers, and what is as before")
    parser.add_argument("--across", action="store_true", help="compare seconds of different devices")
    arguments = parser.parse_args(argv)
    if not arguments.threshold >= 1:
        parser.error(f"--threshold: expected at least 1, got {arguments.threshold}")
    asked = () if arguments.provider is None else tuple(arguments.provider.split(","))
    rule = Rule(arguments.threshold, asked or OURS, arguments.all, arguments.across)
    failed, compared, known = False, False, set[str]()
    try:
        for name, old, new in pairs(arguments.old, arguments.new):
            print(f"== {name}")
            if old is None or new is None:
                print(f"only in {'NEW' if old is None else 'OLD'}\n")
                continue
            found = compare_files(old, new, rule)
            print(found.text(arguments.all) + "\n")
            failed |= found.failed
            compared |= bool(found.lines or found.failures)
            known |= found.providers
        for provider in asked:  # of all files together: a suite has not the providers of the next
            if provider not in known:
                expected = ", ".join(sorted(known)) or "none, as no file has seconds"
                raise ResultError(f"--provider: expected some of {expected}, got {provider!r}")
        if not compared:
            raise ResultError(
                f"nothing could be compared of {arguments.old} and {arguments.new}; of seconds it is those of "
                f"{', '.join(rule.providers)}, unless --provider or --all says otherwise"
            )
    except ResultError as error:
        print(f"benchmarks.compare: error: {error}", file=sys.stderr)
        return 2
    print("Something got worse." if failed else "Nothing got worse.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
