"""What the library claims: one table, each line with its goal and where the number comes from; and how it is judged.

A claim is decided by its worst value, and passes by all that it names: what is not measured yet is said. Every one is
judged from result files alone; one about GPUs for every GPU that there are results of. What Triton's interpreter took
is no speed, and is not looked at.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.counted import host_time
from benchmarks.files import LATE, RESULTS, ResultError, load
from benchmarks.timed import cases

SHORT, SO_FAR, PASS, OPEN = ORDER = ("falls short", "passes so far", "pass", "not measured")
NAMED = 3  # of what is missing

Content = Mapping[str, Any]
# By what it is of: a number, None where it is not measured yet, or in words how ours failed.
Values = Iterator[tuple[str, float | str | None]]


@dataclass(frozen=True)
class Claim:
    """A line of the table. Every value found in the file is ``bound`` at most, or at ``least``."""

    name: str
    goal: str
    file: str
    values: Callable[[Content], Values]
    bound: float
    unit: str = "times"
    least: bool = False


class Verdict(NamedTuple):
    """A claim as a file decides it."""

    name: str
    goal: str
    found: str
    verdict: str
    source: str


def rows(content: Content) -> list[dict[str, Any]]:
    """The cases of a result file; those of host time and the launches of a table of configs as the others are."""
    nothing: dict[str, Any] = {"peak_bytes": {}, "not_timed": {}}
    found = [{"key": key, **nothing, **case} for key, case in content.get("cases", {}).items()]
    for case in found:
        if "ratio" in case:
            ours, eager = ({"median": case[who]["median"] / 1e6} for who in ("ours_us", "plain_us"))
            case |= {"seconds": {"ours": ours, "eager": eager}, "ours_over": {"eager": case["ratio"]}}
    for entry in content.get("entries", ()):
        key = "{kernel}, {dtype}, {layout}, {channels} channels, {positions} positions, {config}".format(**entry)
        seconds = {"ours": {"median": entry["rule_seconds"]}, "tuned": {"median": entry["seconds"]}}
        over = {"tuned": {"median": entry["rule_seconds"] / entry["seconds"]}}
        found.append({"key": key, **nothing, "seconds": seconds, "ours_over": over})
    return found


# Of a record, what ours is beside a rival.
TIME, SPEED, POINTS, MEMORY = (
    lambda found, _, rival: found["ours_over"][rival]["median"],
    lambda found, _, rival: 1 / found["ours_over"][rival]["median"],
    lambda found, own, rival: 100 * (found["tax"][own]["median"] - found["tax"][rival]["median"]),
    lambda found, own, rival: found["peak_bytes"][own] / found["peak_bytes"][rival],
)


def of(suite: str, rivals: str, name: str, value: Any, content: Content, size: str = "goal", **wanted: Any) -> Values:
    """A value for every rival in a suite's cases that have these fields.

    One that refuses a case is no rival in it; one that refuses all of them was not beaten.
    """
    refusing, timed = dict[str, bool](), False
    for case in cases.SUITES[suite](size):
        if not wanted.items() <= vars(case).items():
            continue
        found, what = content.get("cases", {}).get(str(case)), name.format(case)
        why = found["not_timed"].get(case.own) if found else LATE
        if why is not None:
            yield what, None if why == LATE else why
            continue
        for who in (*found["ours_over"], *found["not_timed"]):
            if who.partition(" ")[0] in rivals.split():  # timm's own formula is its counterpart, too
                met = who in found["ours_over"]
                timed |= met
                refusing[who] = refusing.get(who, True) and not met and found["not_timed"][who] != LATE
                if met or found["not_timed"][who] == LATE:
                    yield f"{what}, {who}", value(found, case.own, who) if met else None
    yield from ((f"{rival} anywhere", None) for rival, always in refusing.items() if timed and always)


def recorded(rival: str, content: Content) -> Values:
    """Our time over a rival's in all cases of a file, whichever these are."""
    yield from ((case["key"], case["ours_over"][rival]["median"]) for case in rows(content))


def copies(content: Content) -> Values:
    """What the kernels that apply a gate move, as a share of what a copy moves."""
    for case in rows(content):
        for launch in case.get("launches", ()):
            if launch["kernel"].startswith(("apply_gate", "spatial_apply", "map_gate", "position_gate_fwd")):
                yield f"{case['block']}, {case['site']}, {launch['kernel']}", launch["share_of_copy"]


FASTER, TAX = "1.3 times as fast as eager PyTorch and torch.compile", "less than eager's, torch.compile's and timm's"
COPY, RIVALS = "85% of what a copy moves in the same time", "ahead of SDPA, FlexAttention, eager and compiled"
CALL, RULE = "no longer than eager PyTorch's, by the clock on the wall", "within 10% of the tuned config on every shape"
HOST = f"at most {host_time.GOAL} of the plain block's, every block, both directions"
MATRIX, ON_CPU = "no more than the matrix", "at most 1.05 times its time"
SDPA = "eager compile sdpa sdpa-flash sdpa-efficient sdpa-cudnn flex"
AT, MAP = "{0.block}, {0.site}, batch {0.shape[0]}", "{0.site} at {0.image}², batch {0.batch}"
BLOCK, NETWORK = "{0.block}, {0.site}, {0.layout}, {0.direction}", "{0.attention}, {0.where}, {0.mode}"


def claims() -> Iterator[Claim]:
    """The table: name, goal, file, where in it, and what bounds it."""
    for name in cases.GOAL_BLOCKS:
        values = partial(of, "blocks", "eager compile", "{0.site}", SPEED, block=name, direction=cases.TRAINING)
        yield Claim(f"{name}, both ways", FASTER, "<GPU>/blocks.json", values, 1.3, least=True)
    yield Claim("apply kernels", COPY, "<GPU>/blocks.json", copies, 0.85, "of a copy", least=True)
    for name, way in (("inference", cases.FORWARD), ("training", cases.TRAINING)):
        values = partial(of, "calls", "eager", AT, TIME, direction=way)
        yield Claim(f"{name} at batch 1 and 16", CALL, "<GPU>/calls.json", values, 1.0)
    yield Claim("a call's host time", HOST, "<GPU>/host_time.json", partial(recorded, "eager"), host_time.GOAL)
    for way in (cases.FORWARD, cases.BACKWARD):
        values = partial(of, "nonlocal", SDPA, MAP, SPEED, direction=way)
        yield Claim(f"non-local, {way}", RIVALS, "<GPU>/nonlocal.json", values, 1.0, least=True)
    for name, mode in product(("se", "eca", "cbam"), cases.MODES):
        wanted: dict[str, Any] = {"attention": name, "where": "block", "mode": mode}
        values = partial(of, "models", "eager compile timm", "{0.own}", POINTS, **wanted)
        claim, unit = f"tax of {name} in every block, {mode}", "points beside another's"
        yield Claim(claim, TAX, "<GPU>/models.json", values, 0.0, unit)
    yield Claim("configs by rule", RULE, "<GPU>/tuning.json", partial(recorded, "tuned"), 1.1, "times its time")
    yield Claim("a call's host time, no GPU", HOST, "cpu/host_time.json", partial(recorded, "eager"), host_time.GOAL)
    for name, suite, who, what in (
        ("blocks on a CPU, the tutorial's formula", "blocks", "formula", BLOCK),
        ("blocks on a CPU, timm's counterpart", "blocks", "timm", BLOCK),
        ("ResNet-50 on a CPU, with the formula", "models", "formula", NETWORK),
        ("ResNet-50 on a CPU, timm's network", "models", "timm", NETWORK),
        ("non-local on a CPU, the explicit matrix", "nonlocal", "eager", "{0.positions} positions, {0.direction}"),
    ):
        yield Claim(name, ON_CPU, f"cpu/{suite}.json", partial(of, suite, who, what, TIME, size="small"), 1.05)
    values = partial(of, "nonlocal", "eager", "{0.positions} positions, {0.direction}", MEMORY, size="small")
    yield Claim("non-local on a CPU, memory", MATRIX, "cpu/nonlocal.json", values, 1.0)


CLAIMS = list(claims())


def gpu_folders(results: Path) -> list[Path]:
    """The folders with results of GPUs."""
    found = {path.parent for path in results.glob("*/*.json")}
    return sorted(path for path in found if path.name not in ("cpu", "interpreter", "compile"))


def judge(results: Path) -> list[Verdict]:
    """All claims, judged by the result files in a folder.

    Raises:
        ResultError: a file cannot be read, or is not what its name says.
    """
    folders = [path.name for path in gpu_folders(results)] or ["<GPU>"]
    found = []
    for folder in folders:
        for claim in CLAIMS:
            if folder == folders[0] or claim.file.startswith("<GPU>"):
                file = claim.file.replace("<GPU>", folder)
                path = results / file
                content = load(path) if path.exists() else {}
                try:
                    values = list(claim.values(content))
                except (KeyError, TypeError, AttributeError) as error:
                    wrong = f"expected a result file of this suite, but {error!r} is not as it should be"
                    raise ResultError(f"{path}: {wrong}") from error
                found.append(Verdict(claim.name, claim.goal, *decided(claim, values), file))
    return found


def decided(claim: Claim, values: Iterable[tuple[str, float | str | None]]) -> tuple[str, str]:
    """What was found, in words, and the verdict."""
    numbers, missing, failed = dict[str, float](), list[str](), list[str]()
    pick: Any = min if claim.least else max
    for what, value in values:
        if value is None:
            missing.append(what)
        elif isinstance(value, str):
            failed.append(f"{what}: {value}")
        else:
            numbers[what] = pick(value, numbers.get(what, value))
    parts, verdict = [], OPEN

    def listed(names: list[str]) -> str:
        return "; ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

    if failed:
        parts.append(f"ours failed: {listed(failed)}")
        verdict = SHORT
    if numbers:
        worst = pick(numbers, key=lambda what: numbers[what])
        middle, bound = statistics.median(numbers.values()), "at least" if claim.least else "at most"
        parts.append(f"{bound} {numbers[worst]:.2f} {claim.unit} ({worst}), median {middle:.2f}, of {len(numbers)}")
        passes = numbers[worst] <= claim.bound if pick is max else numbers[worst] >= claim.bound
        verdict = SHORT if failed or not passes else SO_FAR if missing else PASS
    if parts and missing:
        parts.append(f"not measured: {listed(missing)}")
    return "; ".join(parts), verdict


def as_text(verdicts: list[Verdict]) -> str:
    """For a terminal, a line each."""
    lines = [f"{each.verdict:13}  {each.name}: {each.found or '—'} (goal: {each.goal})" for each in verdicts]
    counts = Counter(each.verdict for each in verdicts)
    return "\n".join([*lines, "", ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER)])


if __name__ == "__main__":
    print(as_text(judge(RESULTS)))
