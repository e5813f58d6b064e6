"""What was measured, a section for each suite: the same for every device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.claims import cases_of, medians, records_of, side, taxes
from benchmarks.measurement import OURS
from benchmarks.page import Page, read

GATES = ("se", "eca", "coordinate", "cbam", "dual", "gate", "pixel")


def tax_section(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """What a network pays for its attention."""
    page.add(
        "### The attention tax",
        "",
        "The time of ResNet-50 with attention over the time of the same kind of network without, round by round, minus "
        "one: ours, eager and formula against plain, compiled against compiled, timm's against timm's (timm-plain). "
        "`block` is attention in every residual block, `stem+layer4` behind the stem and behind the last stage. "
        "Training is forward, loss and backward.",
    )
    data: dict[str, dict[str, dict[str, float]]] = {}
    rows: list[list[str]] = []
    cases = sorted(records_of(content), key=lambda case: (case["where"], case["mode"], case["attention"]))
    for case in cases:
        case = {"tax": {}, **case}
        paid, taken = taxes(case), medians(case)
        title = f"{case['where']}, {case['mode']}"
        for who, tax in paid.items():
            if case["layout"] == cases[0]["layout"]:
                data.setdefault(title, {}).setdefault(who, {})[case["attention"]] = tax
        speeds = [f"{plots.words(who)} {case['batch'] / seconds:.0f}" for who, seconds in taken.items()]
        others = {who: tax for who, tax in paid.items() if who not in OURS}
        rows.append(
            [
                case["attention"],
                case["where"],
                f"{case['mode']}, {case['batch']} × {case['image']}², {case['dtype']}, {case['layout']}"
                + (", compiled" if case["compiled"] else ""),
                own_tax(case),
                ", ".join(f"{plots.words(who)} {tax:.1%}" for who, tax in others.items()) or "—",
                ", ".join(speeds),
            ]
        )
    source = page.source(path, content)
    name = f"tax-{path.parent.name}"
    if data:
        page.figure(name, "the attention tax", data, plots.tax(data), (4.2 * len(data), 3.6), source)
    page.table(["attention", "where", "case", "our tax (quartiles)", "others' tax", "images per second"], rows)
    page.add(f"*{source}. In bold: another pays less.*")


def own_tax(case: Mapping[str, Any]) -> str:
    """Ours with its quartiles, bold where another pays less; or why there is none."""
    own = next((who for who in OURS if who in case["tax"]), None)
    if own is None:
        return why_not(case)
    tax = case["tax"][own]
    text = f"{tax['median']:.1%}"
    text = f"**{text}**" if tax["median"] > min(taxes(case).values()) else text
    return f"{text} ({tax['q1']:.1%} to {tax['q3']:.1%})"


def why_not(case: Mapping[str, Any]) -> str:
    """Why ours was not timed."""
    found = [case["not_timed"][who] for who in OURS if who in case["not_timed"]]
    return f"**{cell(found[0])}**" if found else "—"


def cell(text: str) -> str:
    """What may stand in a table."""
    return text.replace("|", "/")


def rivals(case: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Quartiles of our time over each other way's to the same result, which a copy is not."""
    return {who: ratio for who, ratio in case["ours_over"].items() if who != "copy"}


def refusals(case: Mapping[str, Any]) -> list[str]:
    """Who else was not timed, and why."""
    return [f"{plots.words(who)}: {cell(why)}" for who, why in case["not_timed"].items() if who not in OURS]


def over(ratio: float) -> str:
    """Our time over another's, bold where ours is the longer."""
    text = f"{ratio:.2f}"
    return f"**{text}**" if float(text) > 1 else text


def block_table(page: Page, path: Path, content: Mapping[str, Any], **wanted: Any) -> None:
    """Ours against everybody, block by block."""
    cases = records_of(content, **wanted)
    if not cases:
        return
    rows = []
    for case in sorted(cases, key=lambda each: -max((q["median"] for q in rivals(each).values()), default=0)):
        others = [
            f"{plots.words(who)} {over(q['median'])} ({q['q1']:.2f}–{q['q3']:.2f})" for who, q in rivals(case).items()
        ]
        what = f"{case['block']}, {case['site']}, {case['layout']}, {case['direction']}"
        ours = case["seconds"].get("ours")
        peak = case["peak_bytes"].get("ours")
        rows.append(
            [
                what,
                f"{ours['median'] * 1e6:.0f}" if ours else why_not(case),
                f"{peak / 1e6:.1f}" if peak is not None else "—",
                "; ".join([*others, *refusals(case)]),
            ]
        )
    page.table(["case", "ours, µs", "ours, MB at most", "our time over others' (quartiles)"], rows)
    page.add(f"*{page.source(path, content)}. In bold: ours is slower.*")


def calls_section(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """Wall time beside the GPU's, the worst ratio on top."""
    page.add(
        "### A call at a small batch",
        "",
        "By the clock on the wall, one eager call on a GPU at rest, until it rests again; and the GPU's own part of "
        "it. Where the GPU has little to do the rest is Python's. Training is forward and backward.",
    )
    rows = []
    for case in sorted(records_of(content), key=lambda case: -over_eager(case).get("median", 0)):
        wall, gpu = (each.get("seconds", {}) for each in (case.get("wall", {}), case))
        cells = [
            f"{each[who]['median'] * 1e6:.0f}" if who in each else "—"
            for each in (wall, gpu)
            for who in ("ours", "eager")
        ]
        ratio = over_eager(case)
        rows.append(
            [
                f"{case['block']}, {case['site']}, batch {case['shape'][0]}, {case['direction']}",
                cells[0] if "ours" in wall else why_not(case),
                cells[1],
                f"{over(ratio['median'])} ({ratio['q1']:.2f}–{ratio['q3']:.2f})" if ratio else "—",
                *cells[2:],
            ]
        )
    head = ["case", "ours, µs", "eager PyTorch, µs", "ours over it (quartiles)", "GPU: ours, µs", "GPU: eager, µs"]
    page.table(head, rows)
    page.add(f"*{page.source(path, content)}. In bold: ours is slower.*")


def host_section(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """What a call costs its host, the worst ratio on top."""
    page.add(
        "### A call's host time",
        "",
        "What a call takes until its work is asked for, on a 1×1 map, beside the plain block's operators: below it no "
        "GPU, however fast, can bring a small batch. Training is forward and backward.",
    )
    rows = [
        [
            key,
            f"{case['ours_us']['median']:.0f}",
            f"{case['plain_us']['median']:.0f}",
            f"{bold(case['ratio']['median'], content['goal'])} ({case['ratio']['q1']:.2f}–{case['ratio']['q3']:.2f})",
        ]
        for key, case in sorted(content["cases"].items(), key=lambda each: -each[1]["ratio"]["median"])
    ]
    page.table(["case", "ours, µs", "the plain block, µs", "ours over it (quartiles)"], rows)
    page.add(f"*{page.source(path, content)}. In bold: over the goal of {content['goal']}.*")


def bold(value: float, goal: float) -> str:
    """A number, bold where it is over a goal."""
    text = f"{value:.2f}"
    return f"**{text}**" if float(text) > goal else text


def over_eager(case: Mapping[str, Any]) -> dict[str, float]:
    """Quartiles of our wall time over eager PyTorch's; empty where one of them is not there."""
    return case.get("wall", {}).get("ours_over", {}).get("eager", {})


def roofline_section(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """Bytes that are needed, over the time taken, against what a copy achieves."""
    page.add(
        "### Against the memory's speed",
        "",
        "The passes over the map that a block needs, forward and backward (counted, `results/traffic.json`), in the "
        "time it takes: all providers by the same bytes, whatever they move. The line is a copy on the same device.",
    )
    needed = {
        row["case"]: row["ours"]["forward"]["total"] + row["ours"]["backward"]["total"]
        for row in (read(page.results / "traffic.json") or {"rows": []})["rows"]
        if row["ours"] and row["layout"] == "channels_last" and not row["shortcut"]
    }
    data: dict[str, dict[str, float]] = {}
    copies = []
    for case in cases_of(content, dtype="bfloat16", layout="channels_last", site="layer1"):
        size = 2
        for length in case["shape"]:
            size *= length
        taken = medians(case)
        if "copy" in taken:
            copies.append(2 * size / taken["copy"] / 1e9)
        if case["direction"] == "training" and case["block"] in needed and case["block"] in GATES:
            for who in ("ours", "compile", "eager", "timm"):
                if who in taken:
                    data.setdefault(who, {})[case["block"]] = needed[case["block"]] * size / taken[who] / 1e9
    if data and copies:
        name = f"roofline-{path.parent.name}"
        copy = sorted(copies)[len(copies) // 2]
        draw = plots.roofline(data, copy)
        page.figure(name, "bandwidth by block", [data, copy], draw, (7.5, 3.8), page.source(path, content))
    else:
        page.add("Not measured: it needs the blocks at layer1 in bfloat16, and the copy.")


def attention_section(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """Non-local's time and memory against the size of the map."""
    page.add("### Non-local attention")
    cases = cases_of(content, batch=1, site="stem")
    for direction in dict.fromkeys(case["direction"] for case in cases):
        own = sorted((each for each in cases if each["direction"] == direction), key=lambda each: each["positions"])
        dtype = own[0]["dtype"]
        own = [each for each in own if each["dtype"] == dtype]
        times: dict[str, dict[int, float]] = {}
        memory: dict[str, dict[int, float]] = {}
        for case in own:
            for who, seconds in medians(case).items():
                times.setdefault(who, {})[case["positions"]] = seconds * 1e3
                if case["peak_bytes"].get(who):
                    memory.setdefault(who, {})[case["positions"]] = case["peak_bytes"][who] / 1e6
        name = f"nonlocal-{direction}-{path.parent.name}"
        title = f"{direction}, d = {own[0]['widths'][0]}, dv = {own[0]['widths'][1]}, {dtype}, one image"
        draw = plots.growth(times, memory, title)
        data = [{who: sorted(points.items()) for who, points in each.items()} for each in (times, memory)]
        page.figure(name, f"non-local, {direction}", data, draw, (8, 3.4), page.source(path, content))
    rows = []
    for case in records_of(content):
        memory_of = {who: size / 1e6 for who, size in case["peak_bytes"].items() if size is not None}
        rows.append(
            [
                f"{case['site']}, {side(case)}², batch {case['batch']}, {case['dtype']}, {case['direction']}",
                f"{medians(case)['ours'] * 1e3:.2f}" if "ours" in case["seconds"] else why_not(case),
                ", ".join(f"{plots.words(who)} {over(q['median'])}" for who, q in case["ours_over"].items()),
                ", ".join(f"{plots.words(who)} {size:.0f}" for who, size in memory_of.items()),
                "; ".join(refusals(case)) or "—",
            ]
        )
    page.table(["case", "ours, ms", "our time over others'", "memory beside the inputs, MB", "not timed"], rows)
    page.add(f"*{page.source(path, content)}. In bold: ours is slower.*")


def tuning_section(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """What tuning found."""
    page.add("### Tuning")
    rows = []
    for name, case in sorted(
        content["cases"].items(), key=lambda each: -each[1]["seconds"]["rule"] / each[1]["seconds"]["table"]
    ):
        seconds, configs = case["seconds"], case["config"]
        changed = {key: value for key, value in configs["table"].items() if value != configs["rule"].get(key)}
        rows.append(
            [
                name,
                f"{case['configs']}" + (f", {case['other_bits']} with other bits" if case["other_bits"] else ""),
                f"{seconds['rule'] * 1e6:.1f}",
                f"{seconds['table'] * 1e6:.1f}",
                f"{seconds['best'] * 1e6:.1f}",
                ", ".join(f"{key}={value}" for key, value in changed.items()) or "the rule's",
            ]
        )
    page.table(["launch", "configs", "rule, µs", "table, µs", "best, µs", "config"], rows)
    page.add(f"*{page.source(path, content)}*")
