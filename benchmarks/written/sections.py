"""What the performance page says of each suite, the same for every device: one table for all, some with pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.counted import host_time, predicted
from benchmarks.files import load, markdown
from benchmarks.written import plots
from benchmarks.written.claims import ORDER, PASS, gpu_folders, judge, rows
from benchmarks.written.plots import words

Content = Mapping[str, Any]
OURS = ("ours", "ours-compile")
NO_RIVALS = ("copy", "plain", "plain-compile", "timm-plain")  # they do something else
BLOCK = "{block}, {site}, {dtype}, {layout}, {direction}"


class Picture(NamedTuple):
    """What is drawn, of which data, and how large."""

    name: str
    about: str
    draw: plots.Draw
    data: Any
    size: tuple[float, float]


@dataclass(frozen=True)
class Section:
    """A suite's: its words, how it calls a case, what is over the goal, and its pictures."""

    title: str
    words: str
    case: str
    goal: float = 1.0
    pictures: Callable[[Content], Iterable[Picture]] = lambda _: ()


class Pictures(dict[str, tuple[plots.Draw, tuple[float, float], str]]):
    """What is to be drawn for a page, by name, and where its numbers are from."""

    def link(self, picture: Picture, folder: str, note: str) -> str:
        """Note a picture; its data's digest stands in the page, so that a change of a number shows."""
        name = f"{picture.name}-{folder}"
        self[name] = picture.draw, picture.size, note.replace("`", "")
        digest = hashlib.sha256(json.dumps(picture.data, sort_keys=True).encode()).hexdigest()[:16]
        link = f"*{note}; [SVG](performance/{name}.svg).* <!-- data {digest} -->"
        return f"![{picture.about}](performance/{name}.png)\n\n{link}"


def claimed(results: Path, _: str, __: Pictures) -> str:
    """The table of claims, those that fall short first."""
    found = sorted(judge(results), key=lambda each: ORDER.index(each.verdict))
    verdicts = {each: each if each == PASS else f"**{each}**" for each in ORDER}
    rows = ((each.name, each.goal, each.found or "—", verdicts[each.verdict], f"`{each.source}`") for each in found)
    return markdown(("claim", "goal", "found", "verdict", "file in benchmarks/results"), rows)


def measured(results: Path, what: str, pictures: Pictures) -> str:
    """All suites that have left a file, of a device's folder, or of every GPU's with a heading and what is missing."""
    if what != "gpus":
        return "\n\n".join(suites(results / what, pictures))
    parts = []
    for folder in gpu_folders(results):
        device = next(content["device"] for content in map(load, sorted(folder.glob("*.json"))) if "device" in content)
        absent = ", ".join(suite for suite in SUITES if not (folder / f"{suite}.json").exists())
        parts += [f"## On {device}", *suites(folder, pictures)]
        parts += [f"Not measured on this device: {absent}. `make gpu` measures them."] if absent else []
    none = "**No time on a GPU has been measured**: `make gpu` on a machine with one does."
    return "\n\n".join(parts) or none


def suites(folder: Path, pictures: Pictures) -> Iterator[str]:
    """A section for every file in a folder: words, pictures, and all cases, the worst on top."""
    for suite, section in SUITES.items():
        if not (folder / f"{suite}.json").exists():
            continue
        content = load(folder / f"{suite}.json")
        note = source(f"{folder.name}/{suite}.json", content)
        yield f"### {section.title}"
        yield from filter(None, [section.words])
        yield from (pictures.link(picture, folder.name, note) for picture in section.pictures(content))
        head = ["case", "ours, µs", "our time over others' (quartiles)", "memory at most, MB"]
        cells = [
            (section.case.format(**case), ours(case), beside(case, section.goal), memory(case), *tax(case))
            for case in sorted(rows(content), key=worst)
        ]
        yield markdown([*head, "tax (quartiles)"][: max(map(len, cells), default=4)], cells)
        yield f"*{note}. In bold: over {section.goal:g}, the worst on top.*"


def predictions(results: Path, _: str, __: Pictures) -> str:
    """What the model says of every block, and how far to believe it."""
    if not all((results / file).exists() for file in (predicted.FILE, predicted.MEASURED)):
        return "Nothing is predicted here."
    content, took = load(results / predicted.FILE), load(results / predicted.MEASURED)
    found = predicted.Predictions(content)
    note = f"*{source(predicted.FILE, content)}. In bold: ours is predicted to be slower.*"
    parts = (predicted.accuracy(found, took), markdown(predicted.HEAD, predicted.table(found, took)), note)
    return "\n\n".join(parts)


def source(file: str, content: Content) -> str:
    """Where numbers are from, in a line."""
    versions, cases = content["versions"], content.get("cases", {})
    device = f"{content['device']}, " if "device" in content else "counted with no GPU, "
    dates = sorted({case["date"][:10] for case in (*cases.values(), content) if "date" in case})
    when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    kept = ", freed memory kept" if content.get("freed_memory_is_kept") else ""
    codes = dict.fromkeys(case["code"] for case in cases.values() if "code" in case)
    device += f"code {' and '.join(codes)}, " if codes else ""
    return f"{device}torch {versions['torch']}, Triton {versions['triton']}{when}{kept} (`results/{file}`)"


def ours(case: Content) -> str:
    """What ours takes, or why it was not timed."""
    found = [f"{each['median'] * 1e6:.0f}" for who, each in case["seconds"].items() if who in OURS]
    found += [f"**{why.replace('|', '/')}**" for who, why in case["not_timed"].items() if who in OURS]
    return found[0] if found else "—"


def rivals(case: Content) -> dict[str, Mapping[str, float]]:
    """Our time over each other way's to the same result."""
    return {who: ratio for who, ratio in case["ours_over"].items() if who not in NO_RIVALS}


def worst(case: Content) -> float:
    return -max((ratio["median"] for ratio in rivals(case).values()), default=0.0)


def beside(case: Content, most: float) -> str:
    """Ratios, with quartiles where there are any, bold where they are over what they may be; and who was not timed."""
    found = []
    for who, ratio in rivals(case).items():
        text = f"{ratio['median']:.2f}"
        spread = f" ({ratio['q1']:.2f}–{ratio['q3']:.2f})" if "q1" in ratio else ""
        found.append(f"{words(who)} {f'**{text}**' if float(text) > most else text}{spread}")
    found += [f"{words(who)}: {why.replace('|', '/')}" for who, why in case["not_timed"].items() if who not in OURS]
    return "; ".join(found)


def memory(case: Content) -> str:
    """Beside what was there before: ours, and others'."""
    peaks = {who: size for who, size in case["peak_bytes"].items() if who not in NO_RIVALS and size is not None}
    return ", ".join(f"{words(who)} {size / 1e6:.0f}" for who, size in peaks.items()) or "—"


def tax(case: Content) -> list[str]:
    """Of a network, in a cell."""
    paid = case.get("tax", {}).items()
    found = [f"{words(who)} {t['median']:.1%} ({t['q1']:.1%} to {t['q3']:.1%})" for who, t in paid]
    return [", ".join(found)] if found else []


def taxes(content: Content) -> Iterator[Picture]:
    """By where and mode, provider, and attention."""
    data: dict[str, dict[str, dict[str, float]]] = {}
    for case in sorted(rows(content), key=lambda case: (case["where"], case["mode"], case["attention"])):
        for who, paid in case.get("tax", {}).items():
            title = f"{case['where']}, {case['mode']}"
            data.setdefault(title, {}).setdefault(who, {})[case["attention"]] = paid["median"]
    if data:
        yield Picture("tax", "the attention tax", plots.tax(data), data, (4.2 * len(data), 3.6))


def growth(content: Content) -> Iterator[Picture]:
    """Of one image's attention at the stem, in the first dtype, by direction."""
    cases = [case for case in rows(content) if (case["batch"], case["site"]) == (1, "stem") and case["seconds"]]
    for way in dict.fromkeys(case["direction"] for case in cases):
        own = sorted((case for case in cases if case["direction"] == way), key=lambda case: case["positions"])
        time: dict[str, dict[int, float]] = {}
        space: dict[str, dict[int, float]] = {}
        for case in (case for case in own if case["dtype"] == own[0]["dtype"]):
            for who, each in case["seconds"].items():
                time.setdefault(who, {})[case["positions"]] = each["median"] * 1e3
                if case["peak_bytes"].get(who):
                    space.setdefault(who, {})[case["positions"]] = case["peak_bytes"][who] / 1e6
        data = [{who: sorted(points.items()) for who, points in each.items()} for each in (time, space)]
        title = "{direction}, d = {widths[0]}, dv = {widths[1]}, {dtype}, one image".format(**own[0])
        yield Picture(f"nonlocal-{way}", f"non-local, {way}", plots.growth(time, space, title), data, (8, 3.4))


SUITES = {
    "models": Section(
        "The attention tax",
        "The time of ResNet-50 with attention over the time of the same kind of network without, round by round, minus "
        "one: ours, eager and formula against plain, compiled against compiled, timm's against timm's (timm-plain). "
        "`block` is attention in every residual block, `stem+layer4` behind the stem and behind the last stage. "
        "Training is forward, loss and backward.",
        "{attention}, {where}, {mode}, {batch} × {image}², {dtype}, {layout}",
        pictures=taxes,
    ),
    "blocks": Section("Blocks", "", BLOCK),
    "calls": Section(
        "A call at a small batch",
        "By the clock on the wall, one eager call on a GPU at rest, until it rests again. Where the GPU has little to "
        "do the rest is Python's. Training is forward and backward.",
        "{block}, {site}, batch {shape[0]}, {direction}",
    ),
    "host_time": Section(
        "A call's host time",
        "What a call takes until its work is asked for, on a 1×1 map, beside the plain block's operators: below it no "
        "GPU, however fast, can bring a small batch. Training is forward and backward.",
        "{key}",
        host_time.GOAL,
    ),
    "nonlocal": Section(
        "Non-local attention", "", "{site} at {image}², batch {batch}, {dtype}, {direction}", pictures=growth
    ),
    "tuning": Section("Tuning", "Configs by rule beside tuned ones.", "{key}", 1.1),
}
