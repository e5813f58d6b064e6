"""What the library claims: one table, each line with its goal and where the number comes from; and how it is judged.

A claim is decided by its worst value, and passes by all that it names: what is not measured yet is said. Every one is
judged from result files alone; one about GPUs for every GPU that there are results of. What Triton's interpreter took
is no speed, and is not looked at.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.counted import host_time
from benchmarks.files import LATE, RESULTS, ResultError, load
from benchmarks.timed import cases
from benchmarks.timed.turns import ENDED

PASS, SO_FAR, SHORT, OPEN = "pass", "passes so far", "falls short", "not measured"
NAMED = 3  # of what is missing
NOT_YET = (LATE, ENDED)  # reasons that say nothing of a provider
APPLY = ("apply_gate", "spatial_apply", "map_gate", "position_gate_fwd")

Content = Mapping[str, Any]
# By what it is of: a number, None where it is not measured yet, or in words how ours failed.
Values = Iterator[tuple[str, float | str | None]]


@dataclass(frozen=True)
class Claim:
    """A line of the table. ``most`` or ``least`` bounds every value that ``values`` finds in the file."""

    name: str
    goal: str
    file: str
    values: Callable[[Content], Values]
    most: float | None = None
    least: float | None = None
    unit: str = "times"


@dataclass(frozen=True)
class Verdict:
    """A claim as a file decides it."""

    name: str
    goal: str
    found: str
    verdict: str
    source: str


def records(content: Content, **wanted: Any) -> list[dict[str, Any]]:
    """The cases of a file that have these values."""
    found = content["cases"].values() if content else ()
    return [case for case in found if all(case[key] == value for key, value in wanted.items())]


def record(content: Content, case: Any) -> dict[str, Any] | None:
    """That of a case, or None."""
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(case).items()}
    return next(iter(records(content, **fields)), None)


def beside(where: str, found: Content | None, rivals: Iterable[str], own: str = "ours") -> Values:
    """Our time over each rival's, round by round; one that refuses the case is no rival in it."""
    refused = found["not_timed"] if found else {own: LATE}
    if found is None or own in refused:
        yield where, None if refused[own] in NOT_YET else refused[own]
        return
    for rival in rivals:
        if rival in found["ours_over"]:
            yield f"{where}, {rival}", found["ours_over"][rival]["median"]
        elif refused.get(rival, LATE) in NOT_YET:
            yield f"{where}, {rival}", None


def all_beside(pairs: Iterable[tuple[str, Content | None, Iterable[str]]], inverse: bool = False) -> Values:
    """The same of many cases, as ratios or their inverse; a rival that refuses everything was not beaten."""
    seen, every, timed = set(), dict[str, None](), False
    for where, found, rivals in pairs:
        every |= dict.fromkeys(rivals)
        for what, value in beside(where, found, rivals):
            seen.add(what.rpartition(", ")[2])
            timed |= isinstance(value, float)
            yield what, 1 / value if inverse and isinstance(value, float) else value
    yield from ((f"{rival} anywhere", None) for rival in every if timed and rival not in seen)


def blocks(block: str, content: Content) -> Values:
    wanted = [case for case in cases.blocks("goal") if (case.block, case.direction) == (block, cases.TRAINING)]
    return all_beside(((case.site, record(content, case), ("eager", "compile")) for case in wanted), inverse=True)


def copies(content: Content) -> Values:
    for case in records(content, dtype="bfloat16", layout="channels_last"):
        for launch in case.get("launches", ()):
            if launch["kernel"].startswith(APPLY):
                yield f"{case['block']}, {case['site']}, {launch['kernel']}", launch["share_of_copy"]


def calls(direction: str, content: Content) -> Values:
    wanted = [case for case in cases.calls("goal") if case.direction == direction]
    where = "{0.block}, {0.site}, batch {0.shape[0]}"
    return all_beside((where.format(case), record(content, case), ["eager"]) for case in wanted)


def nonlocals(direction: str, content: Content) -> Values:
    wanted = [case for case in cases.nonlocals("goal") if case.direction == direction]
    where = "{0.site} at {0.image}², batch {0.batch}"
    return all_beside(((where.format(case), record(content, case), case.rivals) for case in wanted), inverse=True)


def taxes(attention: str, mode: str, content: Content) -> Values:
    """In points of a hundred, ours less another's."""
    for compiled, own, rivals in ((False, "ours", ("eager", "timm")), (True, "ours-compile", ("compile",))):
        wanted = {"attention": attention, "where": "block", "mode": mode, "layout": "channels_last"}
        found = next(iter(records(content, **wanted, compiled=compiled)), None)
        for what, value in beside(" and ".join(rivals), found, rivals, own):
            rival = what.rpartition(", ")[2]
            if found and isinstance(value, float):
                value = 100 * (found["tax"][own]["median"] - found["tax"][rival]["median"])
            yield rival, value


def on_cpu(rival: str, where: str, content: Content) -> Values:
    for case in records(content):
        # timm's own formula is its counterpart, too.
        labels = [label for label in (*case["ours_over"], *case["not_timed"]) if label.partition(" ")[0] == rival]
        if labels or "ours" in case["not_timed"]:
            yield from beside(where.format(**case), case, labels)


def memory(content: Content) -> Values:
    for case in records(content):
        peak = case["peak_bytes"]
        if "eager" in peak and "ours" in peak:
            yield f"{side(case)}², {case['direction']}", peak["ours"] / peak["eager"]


def side(case: Content) -> int:
    """The side of a non-local case's map."""
    return round(case["positions"] ** 0.5)


def host(content: Content) -> Values:
    yield from ((key, case["ratio"]["median"]) for key, case in (content or {"cases": {}})["cases"].items())


def tuned(content: Content) -> Values:
    for name, case in (content or {"cases": {}})["cases"].items():
        yield name, case["seconds"]["rule"] / case["seconds"]["table"]


FASTER, TAX = "1.3 times as fast as eager PyTorch and torch.compile", "less than eager's, torch.compile's and timm's"
COPY, RIVALS = "85% of what a copy moves in the same time", "ahead of SDPA, FlexAttention, eager and compiled"
CALL, RULE = "no longer than eager PyTorch's, by the clock on the wall", "within 10% of the tuned config on every shape"
HOST = f"at most {host_time.GOAL} of the plain block's, every block, both directions"
MATRIX, ON_CPU = "no more than the matrix", "at most 1.05 times its time"
BLOCK, NETWORK = "{block}, {site}, {layout}, {direction}", "{attention}, {where}, {mode}"
FORMULA, TIMM = partial(on_cpu, "formula"), partial(on_cpu, "timm")
AWAY = partial(on_cpu, "eager", "{positions} positions, {direction}")
BLOCKS, NETWORKS, NONLOCAL = "cpu/blocks.json", "cpu/models.json", "cpu/nonlocal.json"
WAYS, MODES = (cases.FORWARD, cases.BACKWARD), (cases.TRAINING, cases.INFERENCE)
POINTS = "points beside another's"
TAXED = list(product(("se", "eca", "cbam"), MODES))

# Name, goal, file, where in it, and what bounds it.
CLAIMS = [
    *(Claim(f"{n}, both ways", FASTER, "<GPU>/blocks.json", partial(blocks, n), least=1.3) for n in cases.GOAL_BLOCKS),
    Claim("apply kernels", COPY, "<GPU>/blocks.json", copies, least=0.85, unit="of a copy"),
    Claim("inference at batch 1 and 16", CALL, "<GPU>/calls.json", partial(calls, cases.FORWARD), most=1.0),
    Claim("training at batch 1 and 16", CALL, "<GPU>/calls.json", partial(calls, cases.TRAINING), most=1.0),
    Claim("a call's host time", HOST, "<GPU>/host_time.json", host, most=host_time.GOAL),
    *(Claim(f"non-local, {way}", RIVALS, "<GPU>/nonlocal.json", partial(nonlocals, way), least=1.0) for way in WAYS),
    *(
        Claim(f"tax of {n} in every block, {mode}", TAX, "<GPU>/models.json", partial(taxes, n, mode), 0.0, unit=POINTS)
        for n, mode in TAXED
    ),
    Claim("configs by rule", RULE, "<GPU>/tuning.json", tuned, most=1.10, unit="times its time"),
    Claim("a call's host time, no GPU", HOST, "cpu/host_time.json", host, most=host_time.GOAL),
    Claim("blocks on a CPU, the tutorial's formula", ON_CPU, BLOCKS, partial(FORMULA, BLOCK), most=1.05),
    Claim("blocks on a CPU, timm's counterpart", ON_CPU, BLOCKS, partial(TIMM, BLOCK), most=1.05),
    Claim("ResNet-50 on a CPU, with the formula", ON_CPU, NETWORKS, partial(FORMULA, NETWORK), most=1.05),
    Claim("ResNet-50 on a CPU, timm's network", ON_CPU, NETWORKS, partial(TIMM, NETWORK), most=1.05),
    Claim("non-local on a CPU, the explicit matrix", ON_CPU, NONLOCAL, AWAY, most=1.05),
    Claim("non-local on a CPU, memory", MATRIX, NONLOCAL, memory, most=1.0),
]


def gpu_folders(results: Path) -> list[Path]:
    """The folders with results of GPUs."""
    files = {Path(claim.file).name for claim in CLAIMS if claim.file.startswith("<GPU>")}
    others = ("cpu", "interpreter", "compile")
    found = {path.parent for path in results.glob("*/*.json") if path.name in files}
    return sorted(path for path in found if path.name not in others)


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
    pick: Any = max if claim.least is None else min
    for what, value in values:
        if value is None:
            missing.append(what)
        elif isinstance(value, str):
            failed.append(f"{what}: {value}")
        else:
            numbers[what] = pick(value, numbers.get(what, value))
    parts, verdict = [], OPEN
    if failed:
        parts.append(f"ours failed: {listed(failed)}")
        verdict = SHORT
    if numbers:
        worst = pick(numbers, key=lambda what: numbers[what])
        middle, bound = statistics.median(numbers.values()), "at most" if claim.least is None else "at least"
        parts.append(f"{bound} {numbers[worst]:.2f} {claim.unit} ({worst}), median {middle:.2f}, of {len(numbers)}")
        passes = numbers[worst] <= claim.most if claim.most is not None else numbers[worst] >= (claim.least or 0.0)
        verdict = SHORT if failed or not passes else SO_FAR if missing else PASS
    if parts and missing:
        parts.append(f"not measured: {listed(missing)}")
    return "; ".join(parts), verdict


def listed(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def as_text(verdicts: list[Verdict]) -> str:
    """The table for a terminal."""
    rows = [("claim", "goal", "measured or counted", "verdict")]
    rows += [(each.name, each.goal, each.found or "—", each.verdict) for each in verdicts]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    counts = {verdict: sum(each.verdict == verdict for each in verdicts) for verdict in (PASS, SO_FAR, SHORT, OPEN)}
    return "\n".join([*lines, "", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())])


if __name__ == "__main__":
    print(as_text(judge(RESULTS)))
