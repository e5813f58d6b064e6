"""What the library claims, each with the goal, what was measured or counted, and whether that passes.

Every claim is judged from result files alone. One about GPUs is judged for every GPU that there are results of; what
Triton's interpreter took is no speed, and is not looked at.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ceilings import CEILINGS, over

PASS, SHORT, OPEN = "pass", "falls short", "not measured"
SPEEDUP = 1.3  # over eager PyTorch and torch.compile, forward and backward together
SHARE_OF_COPY = 0.85
CPU_AT_MOST = 1.05  # of what timm's block or the plain formula takes
RULE_AT_MOST = 1.10  # of what the tuned config takes
NO_GPU = ("cpu", "interpreter")
APPLY = ("apply_gate", "spatial_apply", "map_gate", "position_gate_fwd")
RIVALS = ("sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "flex", "eager", "compile")
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}


class ResultError(ValueError):
    """A result file that cannot be read; the message names it."""


@dataclass(frozen=True)
class Claim:
    """One line of the table."""

    name: str
    goal: str
    measured: str
    verdict: str
    source: str
    kind: str = "measured"


def load(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ResultError: it is there, and is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: expected a result file in JSON ({error})") from error
    if not isinstance(found, dict):
        raise ResultError(f"{path}: expected a result file, a JSON object, got a {type(found).__name__}")
    return found


def gpu_folders(results: Path) -> list[Path]:
    """The folders with results of GPUs."""
    return sorted(
        path
        for path in results.glob("*/")
        if path.name not in NO_GPU
        and any((path / f"{suite}.json").exists() for suite in ("blocks", "nonlocal", "models", "autotune"))
    )


def judge(results: Path, counted: Path | None = None) -> list[Claim]:
    """All claims, judged by the result files in a folder; what was counted may lie in another one.

    Raises:
        ResultError: a file cannot be read, or is not what its name says.
    """
    folders = gpu_folders(results) or [results / "<GPU>"]
    found: list[Claim] = []
    for folder in folders:
        for suite, judged in (
            ("blocks", blocks_on_gpu),
            ("nonlocal", nonlocal_on_gpu),
            ("models", tax_on_gpu),
            ("autotune", tuning_on_gpu),
        ):
            found += judged_file(results, folder / f"{suite}.json", judged)
    counted = counted or results
    for base, name, judged in (
        (results, "cpu/blocks.json", blocks_on_cpu),
        (results, "cpu/models.json", models_on_cpu),
        (results, "cpu/nonlocal.json", nonlocal_on_cpu),
        (counted, "traffic.json", traffic),
        (counted, "compile/report.json", machine_code),
    ):
        found += judged_file(base, base / name, judged)
    return found


Judge = Callable[[Mapping[str, Any], str], Iterator[Claim]]


def judged_file(results: Path, path: Path, judged: Judge) -> list[Claim]:
    """The claims that a file decides; those of a file that is not there are open."""
    content = load(path) if path.exists() else {}
    try:
        return list(judged(content, str(path.relative_to(results))))
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultError(
            f"{path}: expected a result file of this suite, but {error!r} is not as it should be"
        ) from error


def cases_of(content: Mapping[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The cases of a file that are timed and have these values."""
    found = content["cases"].values() if content else ()
    return [case for case in found if case["seconds"] and all(case[key] == value for key, value in wanted.items())]


def medians(case: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by provider."""
    return {provider: each["median"] for provider, each in case["seconds"].items()}


def blocks_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Every block ahead of eager PyTorch and of ``torch.compile``; applying at the speed of a copy."""
    for block in ("se", "eca", "cbam", "coordinate", "dual", "nonlocal", "gate", "pixel"):
        wanted = {"dtype": "bfloat16", "layout": "channels_last", "direction": "training", "block": block}
        ratios: dict[str, float] = {}
        for case in cases_of(content, **wanted):
            taken = medians(case)
            for rival in ("eager", "compile"):
                if rival in taken and "ours" in taken:
                    ratios[f"{case['site']}, {rival}"] = taken[rival] / taken["ours"]
        goal = f"{SPEEDUP} times as fast as eager PyTorch and torch.compile"
        yield at_least(f"{block}, forward + backward", goal, ratios, SPEEDUP, source, "times")
    shares: dict[str, float] = {}
    for case in cases_of(content, dtype="bfloat16", layout="channels_last"):
        for launch in case["launches"]:
            if launch["kernel"].startswith(APPLY) and "share_of_copy" in launch:
                what = f"{case['block']}, {case['site']}, {launch['kernel'].removesuffix('_kernel')}"
                shares[what] = min(launch["share_of_copy"], shares.get(what, float("inf")))
    goal = f"{SHARE_OF_COPY:.0%} of what a copy on the device moves in the same time"
    yield at_least("apply kernels", goal, shares, SHARE_OF_COPY, source, "of a copy")


def at_least(name: str, goal: str, values: Mapping[str, float], least: float, source: str, unit: str) -> Claim:
    """A claim that the least of some values decides."""
    return _decided(name, goal, values, min, source, unit, lambda worst: worst >= least)


def at_most(name: str, goal: str, values: Mapping[str, float], most: float, source: str, unit: str) -> Claim:
    """A claim that the greatest of some values decides."""
    return _decided(name, goal, values, max, source, unit, lambda worst: worst <= most)


def _decided(
    name: str,
    goal: str,
    values: Mapping[str, float],
    pick: Callable[..., str],
    source: str,
    unit: str,
    passes: Callable[[float], bool],
) -> Claim:
    if not values:
        return Claim(name, goal, "", OPEN, source)
    worst = pick(values, key=lambda what: values[what])
    middle, bound = statistics.median(values.values()), "at least" if pick is min else "at most"
    measured = f"{bound} {values[worst]:.2f} {unit} ({worst}), median {middle:.2f}, of {len(values)}"
    return Claim(name, goal, measured, PASS if passes(values[worst]) else SHORT, source)


def nonlocal_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Never behind another attention on the same q, k and v."""
    for direction in ("forward", "backward"):
        ratios = {}
        for case in cases_of(content, dtype="bfloat16", direction=direction):
            taken = medians(case)
            for rival in RIVALS:
                if rival in taken and "ours" in taken:
                    where = f"{case['site']} at {case['image']}², batch {case['batch']}, {rival}"
                    ratios[where] = taken[rival] / taken["ours"]
        goal = "ahead of scaled_dot_product_attention, FlexAttention, eager and compiled"
        yield at_least(f"non-local attention, {direction}", goal, ratios, 1.0, source, "times")


def taxes(case: Mapping[str, Any]) -> dict[str, float]:
    """By provider, what attention adds to the time of the same kind of network without, as a share of it."""
    from benchmarks.bench_models import PLAIN_OF

    taken = medians(case)
    return {who: taken[who] / taken[plain] - 1 for who, plain in PLAIN_OF.items() if who in taken and plain in taken}


def tax_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """The tax of each attention in every block is the least of all."""
    for attention in ("se", "eca", "cbam"):
        for mode in ("training", "inference"):
            name = f"the tax of {attention} in every block, {mode}"
            goal = "less than eager PyTorch's, torch.compile's and timm's"
            paid: dict[str, float] = {}  # the compiled networks are cases of their own
            for case in cases_of(content, attention=attention, where="block", mode=mode, layout="channels_last"):
                paid |= taxes(case)
            ours = min((paid[who] for who in ("ours", "ours-compile") if who in paid), default=None)
            others = {who: tax for who, tax in paid.items() if who in ("eager", "compile", "timm")}
            if ours is None or not others:
                yield Claim(name, goal, "", OPEN, source)
                continue
            least = min(others, key=lambda who: others[who])
            measured = f"{ours:.1%}, the least of the others {others[least]:.1%} ({least})"
            yield Claim(name, goal, measured, PASS if ours < others[least] else SHORT, source)


def tuning_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """The rule is near the tuned config, and a first call searches nothing."""
    ratios = {
        name: case["seconds"]["rule"] / case["seconds"]["table"]
        for name, case in (content or {"cases": {}})["cases"].items()
    }
    goal = f"within {RULE_AT_MOST - 1:.0%} of the tuned config on every shape"
    yield at_most("configs by rule", goal, ratios, RULE_AT_MOST, source, "times its time")
    name, goal = "a first call", "as long with a table as without: nothing is searched"
    first = (content or {}).get("first_call") or {}
    if first.get("with_table") is None:
        yield Claim(name, goal, "", OPEN, source)
    else:
        measured = f"{first['with_table']:.2f} s with, {first['without_table']:.2f} s without"
        # Both compile all kernels anew; a search would take many times that.
        verdict = PASS if first["with_table"] < 1.5 * first["without_table"] else SHORT
        yield Claim(name, goal, measured, verdict, source)


def blocks_on_cpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """No block slower than timm's counterpart or the plain formula."""
    for rival, words in (("formula", "the tutorial's plain formula"), ("timm", "timm's counterpart")):
        ratios = {
            f"{case['block']}, {case['site']}, {case['layout']}, {case['direction']}": ratio["median"]
            for case in cases_of(content)
            for label, ratio in case["ours_over"].items()
            if label.partition(" ")[0] == rival  # timm's own formula is its counterpart, too
        }
        goal = f"at most {CPU_AT_MOST} times the time of {words}"
        yield at_most(f"blocks on a CPU against {words}", goal, ratios, CPU_AT_MOST, source, "times")


def models_on_cpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """No network slower than with the plain formula, or than timm's."""
    for rival, words in (("formula", "the plain formula in the same network"), ("timm", "timm's network")):
        ratios = {
            f"{case['attention']}, {case['where']}, {case['mode']}": case["ours_over"][rival]["median"]
            for case in cases_of(content)
            if rival in case["ours_over"]
        }
        goal = f"at most {CPU_AT_MOST} times the time of {words}"
        yield at_most(f"ResNet-50 on a CPU against {words}", goal, ratios, CPU_AT_MOST, source, "times")


def nonlocal_on_cpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Less time and memory than the explicit matrix."""
    found = cases_of(content)
    times = {f"{side(case)}², {case['direction']}": case["ours_over"]["eager"]["median"] for case in found}
    goal = f"at most {CPU_AT_MOST} times that of the explicit matrix"
    yield at_most("non-local attention on a CPU, time", goal, times, CPU_AT_MOST, source, "times")
    memory = {
        f"{side(case)}², {case['direction']}": case["peak_bytes"]["ours"] / case["peak_bytes"]["eager"]
        for case in found
    }
    goal = "no more than the explicit matrix, and linear in H·W"
    yield at_most("non-local attention on a CPU, memory", goal, memory, 1.0, source, "times")


def side(case: Mapping[str, Any]) -> int:
    """The side of a non-local case's map."""
    return round(case["positions"] ** 0.5)


def traffic(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Passes over the map and launches, counted."""
    for name, ceiling in CEILINGS.items():
        rows = [row for row in (content or {"rows": []})["rows"] if row["case"] == name and row["ours"]]
        forward, backward = ceiling.forward, ceiling.backward
        goal = f"{forward:g} + {backward:g} passes over the map, and a shortcut's; few launches"
        if not rows:
            yield Claim(f"{name}, traffic", goal, "", OPEN, source, "counted")
            continue
        excess: list[str] = []
        for row in rows:
            ours = [row["ours"][way] for way in ("forward", "backward")]
            totals, sectors, launches = (tuple(each[key] for each in ours) for key in ("total", "sectors", "launches"))
            itemsize, channels = ITEMSIZE[content["dtype"]], row["shape"][1]
            excess += over(name, ceiling, row["shortcut"], itemsize, channels, totals, sectors, launches)
        plain = [row["ours"] for row in rows if not row["shortcut"]]
        worst = [max(each[way]["total"] for each in plain) for way in ("forward", "backward")]
        started = [max(each[way]["launches"] for each in plain) for way in ("forward", "backward")]
        measured = f"{worst[0]:.2f} + {worst[1]:.2f} T, {started[0]} + {started[1]} launches"
        yield Claim(f"{name}, traffic", goal, measured, SHORT if excess else PASS, source, "counted")


def machine_code(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """No kernel spills registers, but for those whose page says so."""
    from benchmarks.compile_report import Row, may_spill

    name, goal = "registers", "no spills (non-local in 16 bits on sm_90 and sm_100)"
    rows = [Row(**row) for row in (content or {"rows": []})["rows"]]
    if not rows:
        yield Claim(name, goal, "", OPEN, source, "counted")
        return
    spilling = [row for row in rows if row.spilled and not may_spill(row)]
    programs = sum(row.programs for row in rows)
    measured = f"{len(spilling)} of {len(rows)} kinds of programs spill, {programs} programs in all"
    yield Claim(name, goal, measured, SHORT if spilling else PASS, source, "counted")


def as_text(claims: list[Claim]) -> str:
    """The table for a terminal."""
    rows = [("claim", "goal", "measured or counted", "verdict")]
    rows += [(each.name, each.goal, each.measured or "—", each.verdict) for each in claims]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    counted = {verdict: sum(each.verdict == verdict for each in claims) for verdict in (PASS, SHORT, OPEN)}
    return "\n".join([*lines, "", ", ".join(f"{count} {verdict}" for verdict, count in counted.items())])
