"""What the library claims, each with the goal, what was measured or counted, and whether that passes.

Every claim is judged from result files alone. One about GPUs is judged for every GPU that there are results of; what
Triton's interpreter took is no speed, and is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.counted.ceilings import CEILINGS, over
from benchmarks.counted.host_time import GOAL
from benchmarks.evidence import OPEN, PASS, SHORT, SO_FAR, Claim, Evidence, at_least, at_most, listed
from benchmarks.files import ResultError as ResultError
from benchmarks.files import load
from benchmarks.measurement import LATE, NOT_YET

SPEEDUP = 1.3  # over eager PyTorch and torch.compile, forward and backward together
SHARE_OF_COPY = 0.85
CPU_AT_MOST = 1.05  # of what timm's block or the plain formula takes
RULE_AT_MOST = 1.10  # of what the tuned config takes
NO_GPU = ("cpu", "interpreter")
SUITES = ("blocks", "calls", "nonlocal", "models", "autotune")
APPLY = ("apply_gate", "spatial_apply", "map_gate", "position_gate_fwd")
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}


def gpu_folders(results: Path) -> list[Path]:
    """The folders with results of GPUs."""
    return sorted(
        path
        for path in results.glob("*/")
        if path.name not in NO_GPU and any((path / f"{suite}.json").exists() for suite in (*SUITES, "host_time"))
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
            ("calls", calls_on_gpu),
            ("host_time", host_time),
            ("nonlocal", nonlocal_on_gpu),
            ("models", tax_on_gpu),
            ("autotune", tuning_on_gpu),
        ):
            found += judged_file(results, folder / f"{suite}.json", judged)
    counted = counted or results
    for base, name, judged in (
        (results, "cpu/host_time.json", host_time),
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


def records_of(content: Mapping[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The cases of a file that have these values."""
    found = content["cases"].values() if content else ()
    return [case for case in found if all(case[key] == value for key, value in wanted.items())]


def record_of(content: Mapping[str, Any], **wanted: Any) -> dict[str, Any] | None:
    """The case that has these values, or None."""
    return next(iter(records_of(content, **wanted)), None)


def cases_of(content: Mapping[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """Those in which anybody was timed."""
    return [case for case in records_of(content, **wanted) if case["seconds"]]


def medians(case: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by provider."""
    return {provider: each["median"] for provider, each in case["seconds"].items()}


def times_as_fast(case: Mapping[str, Any], rival: str) -> float:
    """A rival's time over ours."""
    taken = medians(case)
    return taken[rival] / taken["ours"]


def blocks_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Every block ahead of eager PyTorch and of ``torch.compile``; applying at the speed of a copy."""
    from benchmarks.bench_blocks import GOAL_BLOCKS, GOAL_SITES

    rivals = ("eager", "compile")
    for block in GOAL_BLOCKS:
        wanted = {"dtype": "bfloat16", "layout": "channels_last", "direction": "training", "block": block}
        evidence = Evidence()
        for site in GOAL_SITES:
            evidence.add_ratios(site, record_of(content, site=site, **wanted), rivals, times_as_fast)
        evidence.note_never_timed(rivals)
        goal = f"{SPEEDUP} times as fast as eager PyTorch and torch.compile"
        yield at_least(f"{block}, forward + backward", goal, evidence, SPEEDUP, source, "times")
    shares: dict[str, float] = {}
    for case in cases_of(content, dtype="bfloat16", layout="channels_last"):
        for launch in case["launches"]:
            if launch["kernel"].startswith(APPLY) and "share_of_copy" in launch:
                what = f"{case['block']}, {case['site']}, {launch['kernel'].removesuffix('_kernel')}"
                shares[what] = min(launch["share_of_copy"], shares.get(what, float("inf")))
    goal = f"{SHARE_OF_COPY:.0%} of what a copy on the device moves in the same time"
    yield at_least("apply kernels", goal, Evidence(shares), SHARE_OF_COPY, source, "of a copy")


def calls_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """By the clock on the wall no block takes longer than the one that it replaces, where Python's time decides."""
    from benchmarks.bench_calls import cases

    for direction, words in (("forward", "inference"), ("training", "training")):
        evidence = Evidence()
        for case in cases("goal"):
            if case.direction == direction:
                found = record_of(content, **{**asdict(case), "shape": [*case.shape]})
                where = f"{case.block}, {case.site}, batch {case.shape[0]}"
                evidence.add_ratios(where, found and {**found, **found.get("wall", {})}, ("eager",), ours_over)
        goal = "no longer than eager PyTorch's, by the clock on the wall"
        yield at_most(f"a call at batch 1 and 16, {words}", goal, evidence, 1.0, source, "times")


def nonlocal_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Never behind another attention on the same q, k and v."""
    from benchmarks.bench_nonlocal import cases, rivals

    for direction in ("forward", "backward"):
        evidence, every = Evidence(), set()
        for case in cases("goal"):
            if case.direction == direction:
                every |= {*rivals(case)}
                where = f"{case.site} at {case.image}², batch {case.batch}"
                evidence.add_ratios(where, record_of(content, **asdict(case)), rivals(case), times_as_fast)
        evidence.note_never_timed(sorted(every))
        goal = "ahead of scaled_dot_product_attention, FlexAttention, eager and compiled"
        yield at_least(f"non-local attention, {direction}", goal, evidence, 1.0, source, "times")


def taxes(case: Mapping[str, Any]) -> dict[str, float]:
    """By provider, what attention adds to the time of the same kind of network without, as a share of it."""
    return {who: each["median"] for who, each in case["tax"].items()}


def tax_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """The tax of each attention in every block is the least of all."""
    for attention in ("se", "eca", "cbam"):
        for mode in ("training", "inference"):
            evidence, ours = Evidence(), []
            for compiled, own, rivals in ((False, "ours", ("eager", "timm")), (True, "ours-compile", ("compile",))):
                wanted = {"attention": attention, "where": "block", "mode": mode, "compiled": compiled}
                case = record_of(content, layout="channels_last", **wanted)
                paid = taxes(case) if case else {}
                refused = case["not_timed"] if case else {}
                ours += [paid[own]] if own in paid else []
                evidence.values |= {who: paid[who] for who in rivals if who in paid}
                evidence.missing += [who for who in rivals if who not in paid]
                if (why := refused.get(own, LATE)) not in NOT_YET:
                    evidence.failed.append(f"{own}: {why}")
            yield _least_tax(f"the tax of {attention} in every block, {mode}", evidence, ours, source)


def _least_tax(name: str, evidence: Evidence, ours: list[float], source: str) -> Claim:
    goal = "less than eager PyTorch's, torch.compile's and timm's"
    others = evidence.values
    if evidence.failed:
        return Claim(name, goal, f"ours failed: {listed(evidence.failed)}", SHORT, source)
    if not ours or not others:
        return Claim(name, goal, "", OPEN, source)
    least = min(others, key=lambda who: others[who])
    measured = f"{min(ours):.1%}, the least of the others {others[least]:.1%} ({least})"
    measured += f"; not measured: {listed(evidence.missing)}" if evidence.missing else ""
    passes = SO_FAR if evidence.missing else PASS
    return Claim(name, goal, measured, passes if min(ours) < others[least] else SHORT, source)


def tuning_on_gpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """The rule is near the tuned config, and a first call searches nothing."""
    ratios = {
        name: case["seconds"]["rule"] / case["seconds"]["table"]
        for name, case in (content or {"cases": {}})["cases"].items()
    }
    goal = f"within {RULE_AT_MOST - 1:.0%} of the tuned config on every shape"
    yield at_most("configs by rule", goal, Evidence(ratios), RULE_AT_MOST, source, "times its time")
    name, goal = "a first call", "as long with a table as without: nothing is searched"
    first = (content or {}).get("first_call") or {}
    if "failed" in first:
        yield Claim(name, goal, first["failed"], SHORT, source)
    elif first.get("with_table") is None:
        yield Claim(name, goal, "", OPEN, source)
    else:
        measured = f"{first['with_table']:.2f} s with, {first['without_table']:.2f} s without"
        # Both compile all kernels anew; a search would take many times that.
        verdict = PASS if first["with_table"] < 1.5 * first["without_table"] else SHORT
        yield Claim(name, goal, measured, verdict, source)


def blocks_on_cpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """No block slower than timm's counterpart or the plain formula."""
    for rival, words in (("formula", "the tutorial's plain formula"), ("timm", "timm's counterpart")):
        evidence = Evidence()
        for case in records_of(content):
            # timm's own formula is its counterpart, too.
            labels = [label for label in (*case["seconds"], *case["not_timed"]) if label.partition(" ")[0] == rival]
            where = f"{case['block']}, {case['site']}, {case['layout']}, {case['direction']}"
            evidence.add_ratios(where, case, labels, ours_over)
        goal = f"at most {CPU_AT_MOST} times the time of {words}"
        yield at_most(f"blocks on a CPU against {words}", goal, evidence, CPU_AT_MOST, source, "times")


def ours_over(case: Mapping[str, Any], rival: str) -> float:
    """Our time over a rival's, round by round."""
    return case["ours_over"][rival]["median"]


def models_on_cpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """No network slower than with the plain formula, or than timm's."""
    for rival, words in (("formula", "the plain formula in the same network"), ("timm", "timm's network")):
        evidence = Evidence()
        for case in records_of(content):
            if rival in (*case["seconds"], *case["not_timed"]):
                evidence.add_ratios(f"{case['attention']}, {case['where']}, {case['mode']}", case, [rival], ours_over)
        goal = f"at most {CPU_AT_MOST} times the time of {words}"
        yield at_most(f"ResNet-50 on a CPU against {words}", goal, evidence, CPU_AT_MOST, source, "times")


def nonlocal_on_cpu(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Less time and memory than the explicit matrix."""
    times, memory = Evidence(), Evidence()
    for case in records_of(content):
        where = f"{side(case)}², {case['direction']}"
        times.add_ratios(where, case, ["eager"], ours_over)
        memory.add_ratios(where, case, ["eager"], lambda case, rival: _bytes(case, "ours") / _bytes(case, rival))
    goal = f"at most {CPU_AT_MOST} times that of the explicit matrix"
    yield at_most("non-local attention on a CPU, time", goal, times, CPU_AT_MOST, source, "times")
    goal = "no more than the explicit matrix"
    yield at_most("non-local attention on a CPU, memory", goal, memory, 1.0, source, "times")


def _bytes(case: Mapping[str, Any], who: str) -> int:
    return case["peak_bytes"][who]


def side(case: Mapping[str, Any]) -> int:
    """The side of a non-local case's map."""
    return round(case["positions"] ** 0.5)


def host_time(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """What a call costs its host, the worst block of all."""
    name = "a call's host time" + (", no GPU" if source.startswith("cpu") else "")
    goal = f"at most {GOAL} of the plain block's, every block, both directions"
    cases = content["cases"] if content else {}
    if not cases:
        yield Claim(name, goal, "", OPEN, source)
        return
    ratios = {key: case["ratio"]["median"] for key, case in cases.items()}
    worst = max(ratios, key=lambda key: ratios[key])
    within = sum(ratio <= GOAL for ratio in ratios.values())
    measured = f"{within} of {len(ratios)} cases; at most {ratios[worst]:.2f} ({worst})"
    yield Claim(name, goal, measured, PASS if within == len(ratios) else SHORT, source)


def traffic(content: Mapping[str, Any], source: str) -> Iterator[Claim]:
    """Passes over the map and launches, counted."""
    for name, ceiling in CEILINGS.items():
        rows = [row for row in (content or {"rows": []})["rows"] if row["case"] == name]
        goal = f"{ceiling.forward:g} + {ceiling.backward:g} passes over the map, and a shortcut's"
        goal += "; at most {} + {} launches".format(*ceiling.launches) if ceiling.launches else ""
        if any(row["ours"] is None for row in rows):
            yield Claim(f"{name}, traffic", goal, "Triton does not serve it", SHORT, source, "counted")
            continue
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
    from benchmarks.counted.compile_report import Row, may_spill

    name, goal = "registers", "no spills (non-local in 16 bits on sm_90 and sm_100)"
    rows = [Row(**row) for row in (content or {"rows": []})["rows"]]
    if not rows:
        yield Claim(name, goal, "", OPEN, source, "counted")
        return
    spilling = [row for row in rows if row.spilled and not may_spill(row)]
    programs = sum(row.programs for row in rows)
    others = sum(row.spilled > 0 for row in rows) - len(spilling)
    measured = f"of {programs} programs of {len(rows)} kinds, {len(spilling)} kinds spill where none may"
    measured += f", {others} where nothing is promised"
    yield Claim(name, goal, measured, SHORT if spilling else PASS, source, "counted")


def as_text(claims: list[Claim]) -> str:
    """The table for a terminal."""
    rows = [("claim", "goal", "measured or counted", "verdict")]
    rows += [(each.name, each.goal, each.measured or "—", each.verdict) for each in claims]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    counted = {verdict: sum(each.verdict == verdict for each in claims) for verdict in (PASS, SO_FAR, SHORT, OPEN)}
    return "\n".join([*lines, "", ", ".join(f"{count} {verdict}" for verdict, count in counted.items())])
