"""What the performance page says of each suite, the same for every device: a table, most with a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.counted import predicted
from benchmarks.files import load
from benchmarks.written import plots
from benchmarks.written.claims import SHORT, judge, records, side
from benchmarks.written.plots import words

Content = Mapping[str, Any]
OURS = ("ours", "ours-compile")


@dataclass
class Page:
    """Markdown, and the pictures in it by name; each has where its numbers are from."""

    results: Path
    lines: list[str] = field(default_factory=list)
    pictures: dict[str, tuple[plots.Draw, tuple[float, float], str]] = field(default_factory=dict)

    def add(self, *lines: str) -> None:
        self.lines += [*lines, ""]

    def table(self, head: str, rows: Iterable[Sequence[str]]) -> None:
        heads = head.split(" | ")
        self.add(*("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)))

    def source(self, file: str, content: Content) -> str:
        """Where numbers are from, in a line."""
        versions, cases = content["versions"], content.get("cases", {})
        device = f"{content['device']}, " if "device" in content else "counted with no GPU, "
        dates = sorted({case["date"][:10] for case in (*cases.values(), content) if "date" in case})
        when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
        kept = ", freed memory kept" if content.get("freed_memory_is_kept") else ""
        device += f"kernels of {content['kernels']}, " if "kernels" in content else ""
        return f"{device}torch {versions['torch']}, Triton {versions['triton']}{when}{kept} (`results/{file}`)"

    def picture(self, name: str, alt: str, draw: plots.Draw, data: Any, size: tuple[float, float], note: str) -> None:
        """A picture; its data's digest stands in the page, so that a change of a number shows."""
        self.pictures[name] = draw, size, note.replace("`", "")
        digest = f"<!-- data {plots.digest(data)} -->"
        link = f"![{alt}](performance/{name}.png)"
        self.add(link, "", f"*{note}; [SVG](performance/{name}.svg).* {digest}")


def times(ratio: Mapping[str, float], most: float = 1.0) -> str:
    """A ratio with its quartiles, bold where it is over what it may be."""
    text = f"{ratio['median']:.2f}"
    return f"{f'**{text}**' if float(text) > most else text} ({ratio['q1']:.2f}–{ratio['q3']:.2f})"


def microseconds(seconds: Mapping[str, Mapping[str, float]], who: str) -> str:
    return f"{seconds[who]['median'] * 1e6:.0f}" if who in seconds else "—"


def ours_failed(case: Content) -> str:
    """Why ours was not timed."""
    found = [case["not_timed"][who] for who in OURS if who in case["not_timed"]]
    return f"**{found[0].replace('|', '/')}**" if found else "—"


def others(case: Content) -> dict[str, Mapping[str, float]]:
    """Our time over each other way's to the same result, which a copy is not."""
    return {who: ratio for who, ratio in case["ours_over"].items() if who != "copy"}


def refusals(case: Content) -> list[str]:
    """Who else was not timed, and why."""
    return [f"{words(who)}: {why.replace('|', '/')}" for who, why in case["not_timed"].items() if who not in OURS]


def worst(case: Content) -> float:
    return max((ratio["median"] for ratio in others(case).values()), default=0.0)


def claims(page: Page) -> None:
    """The table of claims: those that fall short first."""
    page.add("## Claims")
    order = {SHORT: 0, "passes so far": 1, "pass": 2}
    rows = []
    for each in sorted(judge(page.results), key=lambda each: order.get(each.verdict, 3)):
        verdict = each.verdict if each.verdict == "pass" else f"**{each.verdict}**"
        rows.append((each.name, each.goal, each.found or "—", verdict, f"`{each.source}`"))
    page.table("claim | goal | found | verdict | file in benchmarks/results", rows)


def models(page: Page, file: str, content: Content) -> None:
    page.add(
        "### The attention tax",
        "",
        "The time of ResNet-50 with attention over the time of the same kind of network without, round by round, minus "
        "one: ours, eager and formula against plain, compiled against compiled, timm's against timm's (timm-plain). "
        "`block` is attention in every residual block, `stem+layer4` behind the stem and behind the last stage. "
        "Training is forward, loss and backward.",
    )
    data: dict[str, dict[str, dict[str, float]]] = {}
    rows = []
    for case in sorted(records(content), key=lambda case: (case["where"], case["mode"], case["attention"])):
        tax = case.get("tax", {})
        own = next((who for who in OURS if who in tax), None)
        for who, paid in tax.items():
            title = f"{case['where']}, {case['mode']}"
            data.setdefault(title, {}).setdefault(who, {})[case["attention"]] = paid["median"]
        cell = ours_failed(case)
        if own:
            least = min(paid["median"] for paid in tax.values())
            text = f"{tax[own]['median']:.1%}"
            text = f"**{text}**" if tax[own]["median"] > least else text
            cell = f"{text} ({tax[own]['q1']:.1%} to {tax[own]['q3']:.1%})"
        about = f"{case['mode']}, {case['batch']} × {case['image']}², {case['dtype']}, {case['layout']}"
        rest = ", ".join(f"{words(who)} {paid['median']:.1%}" for who, paid in tax.items() if who not in OURS) or "—"
        speeds = (f"{words(who)} {case['batch'] / each['median']:.0f}" for who, each in case["seconds"].items())
        rows.append(
            [
                case["attention"],
                case["where"],
                about + (", compiled" if case["compiled"] else ""),
                cell,
                rest,
                ", ".join(speeds),
            ]
        )
    note = page.source(file, content)
    name, size = f"tax-{Path(file).parent.name}", (4.2 * len(data), 3.6)
    if data:
        page.picture(name, "the attention tax", plots.tax(data), data, size, note)
    page.table("attention | where | case | our tax (quartiles) | others' tax | images per second", rows)
    page.add(f"*{note}. In bold: another pays less.*")


def blocks(page: Page, file: str, content: Content) -> None:
    page.add("### Blocks", "", "Ours beside others, the worst ratio on top.")
    rows = []
    for case in sorted(records(content), key=lambda case: -worst(case)):
        peak = case["peak_bytes"].get("ours")
        rows.append(
            [
                f"{case['block']}, {case['site']}, {case['dtype']}, {case['layout']}, {case['direction']}",
                microseconds(case["seconds"], "ours") if case["seconds"] else ours_failed(case),
                f"{peak / 1e6:.1f}" if peak is not None else "—",
                "; ".join([*(f"{words(who)} {times(q)}" for who, q in others(case).items()), *refusals(case)]),
            ]
        )
    page.table("case | ours, µs | ours, MB at most | our time over others' (quartiles)", rows)
    page.add(f"*{page.source(file, content)}. In bold: ours is slower.*")


def calls(page: Page, file: str, content: Content) -> None:
    page.add(
        "### A call at a small batch",
        "",
        "By the clock on the wall, one eager call on a GPU at rest, until it rests again; and the GPU's own part of "
        "it. Where the GPU has little to do the rest is Python's. Training is forward and backward.",
    )
    rows = []
    for case in sorted(records(content), key=lambda case: -worst(case)):
        ours, eager = (microseconds(case["seconds"], who) for who in ("ours", "eager"))
        ratio = case["ours_over"].get("eager")
        gpu = (microseconds(case.get("gpu_seconds", {}), who) for who in ("ours", "eager"))
        name = f"{case['block']}, {case['site']}, batch {case['shape'][0]}, {case['direction']}"
        rows.append([name, ours if case["seconds"] else ours_failed(case), eager, times(ratio) if ratio else "—", *gpu])
    page.table("case | ours, µs | eager PyTorch, µs | ours over it (quartiles) | GPU: ours, µs | GPU: eager, µs", rows)
    page.add(f"*{page.source(file, content)}. In bold: ours is slower.*")


def host_time(page: Page, file: str, content: Content) -> None:
    page.add(
        "### A call's host time",
        "",
        "What a call takes until its work is asked for, on a 1×1 map, beside the plain block's operators: below it no "
        "GPU, however fast, can bring a small batch. Training is forward and backward.",
    )
    goal = content["goal"]
    rows = [
        [key, f"{case['ours_us']['median']:.0f}", f"{case['plain_us']['median']:.0f}", times(case["ratio"], goal)]
        for key, case in sorted(content["cases"].items(), key=lambda each: -each[1]["ratio"]["median"])
    ]
    page.table("case | ours, µs | the plain block, µs | ours over it (quartiles)", rows)
    page.add(f"*{page.source(file, content)}. In bold: over the goal of {goal}.*")


def nonlocals(page: Page, file: str, content: Content) -> None:
    page.add("### Non-local attention")
    note, folder = page.source(file, content), Path(file).parent.name
    cases = [case for case in records(content, batch=1, site="stem") if case["seconds"]]
    for direction in dict.fromkeys(case["direction"] for case in cases):
        own = sorted((case for case in cases if case["direction"] == direction), key=lambda case: case["positions"])
        own = [case for case in own if case["dtype"] == own[0]["dtype"]]
        time: dict[str, dict[int, float]] = {}
        memory: dict[str, dict[int, float]] = {}
        for case in own:
            for who, each in case["seconds"].items():
                time.setdefault(who, {})[case["positions"]] = each["median"] * 1e3
                if case["peak_bytes"].get(who):
                    memory.setdefault(who, {})[case["positions"]] = case["peak_bytes"][who] / 1e6
        d, dv = own[0]["widths"]
        draw = plots.growth(time, memory, f"{direction}, d = {d}, dv = {dv}, {own[0]['dtype']}, one image")
        data = [{who: sorted(points.items()) for who, points in each.items()} for each in (time, memory)]
        page.picture(f"nonlocal-{direction}-{folder}", f"non-local, {direction}", draw, data, (8, 3.4), note)
    rows = []
    for case in records(content):
        took = f"{case['seconds']['ours']['median'] * 1e3:.2f}" if case["seconds"] else ours_failed(case)
        sizes = {who: size / 1e6 for who, size in case["peak_bytes"].items() if size is not None}
        what = f"{case['site']}, {side(case)}²" if "positions" in case else f"{case['site']} at {case['image']}²"
        rows.append(
            [
                f"{what}, batch {case['batch']}, {case['dtype']}, {case['direction']}",
                took,
                ", ".join(f"{words(who)} {times(ratio)}" for who, ratio in case["ours_over"].items()),
                ", ".join(f"{words(who)} {size:.0f}" for who, size in sizes.items()),
                "; ".join(refusals(case)) or "—",
            ]
        )
    page.table("case | ours, ms | our time over others' | memory beside the inputs, MB | not timed", rows)
    page.add(f"*{note}. In bold: ours is slower.*")


def tuning(page: Page, file: str, content: Content) -> None:
    page.add("### Tuning")
    rows = []
    for name, case in content["cases"].items():
        seconds, configs = case["seconds"], case["config"]
        changed = {key: value for key, value in configs["table"].items() if value != configs["rule"].get(key)}
        tried = f"{case['configs']}" + (f", {case['other_bits']} with other bits" if case["other_bits"] else "")
        took = (f"{seconds[who] * 1e6:.1f}" for who in ("rule", "table", "best"))
        rows.append([name, tried, *took, ", ".join(f"{key}={value}" for key, value in changed.items()) or "the rule's"])
    page.table("launch | configs | rule, µs | table, µs | best, µs | config", rows)
    page.add(f"*{page.source(file, content)}*")


SUITES: dict[str, Callable[[Page, str, Content], None]] = {
    "models": models,
    "blocks": blocks,
    "calls": calls,
    "host_time": host_time,
    "nonlocal": nonlocals,
    "tuning": tuning,
}


def measured(page: Page, folder: Path) -> Iterator[str]:
    """A section for every suite that has left a file in a device's folder; the names of those that have not."""
    for suite, section in SUITES.items():
        file = f"{folder.name}/{suite}.json"
        if (page.results / file).exists():
            section(page, file, load(page.results / file))
        else:
            yield suite


def predictions(page: Page, content: Content, took: Content) -> None:
    found = predicted.Predictions(content)
    page.add(
        "### Predicted times",
        "",
        f"What a GPU would need, from counts alone, forward and backward, batch 64, bfloat16, channels_last. The model "
        f"(`benchmarks/counted/predicted.py`) was held to the kernels of {content['kernels_then']}, which an H200 was "
        f"measured on. {predicted.accuracy(found, took)} **No kernel of today was measured here**: their column is a "
        "prediction, beside what `torch.compile` was measured to take. It counts 6 µs for every launch, as those in a "
        "stream took; in a CUDA graph they take less. A prototype of SE in as few launches as today's, on the same "
        "H200, took 196, 113, 70 and 83 µs at layer1 to layer4: small launches that wait are where the model is harder "
        "on them than a GPU.",
    )
    page.table(" | ".join(predicted.HEAD), predicted.table(found, took))
    page.add(f"*{page.source(predicted.FILE, content)}. In bold: ours is predicted to be slower.*")
