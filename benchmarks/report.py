"""The performance page from result files: ``python -m benchmarks.report [--results DIR] [--output DIR] [--check]``.

Writes ``performance.md`` and the pictures ``performance/*.png`` and ``.svg``. Every figure and table says which file it
is from, on which device, with which versions, and when. What was not measured is said to be so, with the command that
would; what is slower than its rival stands beside what is faster. ``--check`` writes nothing, and fails where the page
is not what the files say, or a picture is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.claims import (
    CPU_AT_MOST,
    OPEN,
    PASS,
    Claim,
    ResultError,
    cases_of,
    gpu_folders,
    judge,
    load,
    medians,
    side,
    taxes,
)
from benchmarks.files import RESULTS, write

DOCS = Path(__file__).resolve().parents[1] / "docs"
GATES = ("se", "eca", "coordinate", "cbam", "dual", "gate", "pixel")


class Page:
    """Markdown, and the pictures in it."""

    def __init__(self, output: Path, results: Path, check: bool) -> None:
        self.output, self.results, self.check = output, results, check
        self.lines: list[str] = []
        self.missing: list[str] = []

    def add(self, *lines: str) -> None:
        self.lines += [*lines, ""]

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.add(*("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)))

    def source(self, path: Path, content: Mapping[str, Any]) -> str:
        """Where numbers are from, in a line."""
        versions = content["versions"]
        device = f"{content['device']}, " if "device" in content else "counted with no GPU, "
        dates = sorted({case["date"][:10] for case in content.get("cases", {}).values()})
        when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
        kept = ", freed memory kept" if content.get("freed_memory_is_kept") else ""
        text = f"{device}torch {versions['torch']}, Triton {versions['triton']}{when}{kept}"
        return f"{text} (`results/{path.relative_to(self.results)}`)"

    def figure(self, name: str, alt: str, data: Any, draw: Any, size: tuple[float, float], source: str) -> None:
        """A picture, drawn unless the page is only checked; its data's digest stands in the page."""
        path = self.output / "performance" / name
        if not self.check:
            plots.save(draw, path, size, source.replace("`", ""))
        self.missing += [f"{path}{end}" for end in (".png", ".svg") if not path.with_name(f"{name}{end}").exists()]
        self.add(
            f"![{alt}](performance/{name}.png)",
            "",
            f"*{source}; [SVG](performance/{name}.svg).* <!-- data {plots.digest(data)} -->",
        )


def build(page: Page) -> None:
    """All sections."""
    claims = judge(page.results)
    page.add(
        "# Performance",
        "",
        "<!-- Written by `python -m benchmarks.report` from the files in benchmarks/results. -->",
        "What the library claims, what was found, and the files that say so. **Measured** is time on the device "
        "named; **counted** is bytes, launches and registers, which need no GPU and are the same every time. "
        "`make bench` makes the numbers that a machine without a GPU can make, `make gpu` all others, and both this "
        "page.",
    )
    folders = gpu_folders(page.results)
    if not folders:
        page.add(
            "**No time on a GPU has been measured yet**: none was at hand. Every claim about a GPU's speed is open. "
            "`make gpu` on a machine with one judges them all in about ten minutes."
        )
    verdicts(page, claims)
    for folder in folders:
        on_gpu(page, folder)
    counted(page)
    on_cpu(page)


def verdicts(page: Page, claims: Sequence[Claim]) -> None:
    """The table of claims: those that fall short first."""
    page.add("## Claims")
    order = {PASS: 1, OPEN: 2}
    rows = [
        (
            each.name,
            each.goal,
            each.measured or "—",
            each.verdict if each.verdict == PASS else f"**{each.verdict}**",
            each.kind if each.verdict != OPEN else "—",
            f"`{each.source}`",
        )
        for each in sorted(claims, key=lambda each: order.get(each.verdict, 0))
    ]
    page.table(["claim", "goal", "found", "verdict", "how", "file in benchmarks/results"], rows)


def read(path: Path) -> dict[str, Any] | None:
    """A result file, or None where it is not there."""
    return load(path) if path.exists() else None


def on_gpu(page: Page, folder: Path) -> None:
    """What was measured on one GPU."""
    contents = {suite: read(folder / f"{suite}.json") for suite in ("blocks", "nonlocal", "models", "autotune")}
    device = next(each["device"] for each in contents.values() if each)
    page.add(f"## On {device}")
    if found := contents["models"]:
        tax_section(page, folder / "models.json", found)
    if found := contents["blocks"]:
        roofline_section(page, folder / "blocks.json", found)
        block_table(page, folder / "blocks.json", found, dtype="bfloat16", layout="channels_last", direction="training")
    if found := contents["nonlocal"]:
        attention_section(page, folder / "nonlocal.json", found)
    if found := contents["autotune"]:
        tuning_section(page, folder / "autotune.json", found)
    absent = [suite for suite, content in contents.items() if not content]
    if absent:
        page.add(f"Not measured on this device: {', '.join(absent)}. `make gpu` measures them.")


def tax_section(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """What a network pays for its attention."""
    page.add(
        "### The attention tax",
        "",
        "The time of ResNet-50 with attention over the time of the same kind of network without, minus one: ours, "
        "eager and formula against plain, compiled against compiled, timm's against timm's. Training is forward, loss "
        "and backward.",
    )
    data: dict[str, dict[str, dict[str, float]]] = {}
    rows: list[list[str]] = []
    cases = sorted(cases_of(content), key=lambda case: (case["where"], case["mode"], case["attention"]))
    for case in cases:
        paid, taken = taxes(case), medians(case)
        title = f"{case['where']}, {case['mode']}"
        for who, tax in paid.items():
            if case["layout"] == cases[0]["layout"]:
                data.setdefault(title, {}).setdefault(who, {})[case["attention"]] = tax
        speeds = [f"{plots.words(who)} {case['batch'] / seconds:.0f}" for who, seconds in taken.items()]
        others = {who: tax for who, tax in paid.items() if not who.startswith("ours")}
        rows.append(
            [
                case["attention"],
                case["where"],
                f"{case['mode']}, {case['batch']} × {case['image']}², {case['dtype']}, {case['layout']}"
                + (", compiled" if case["compiled"] else ""),
                own_tax(case, paid),
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


def own_tax(case: Mapping[str, Any], paid: Mapping[str, float]) -> str:
    """Ours with its quartiles, bold where another pays less."""
    from benchmarks.bench_models import PLAIN_OF

    own = next((who for who in ("ours", "ours-compile") if who in paid), None)
    if own is None:
        return "—"
    text, spread = f"{paid[own]:.1%}", case["ours_over"][PLAIN_OF[own]]
    text = f"**{text}**" if paid[own] > min(paid.values()) else text
    return f"{text} ({spread['q1'] - 1:.1%} to {spread['q3'] - 1:.1%})"


def rivals(case: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Quartiles of our time over each other way's to the same result, which a copy is not."""
    return {who: ratio for who, ratio in case["ours_over"].items() if who != "copy"}


def over(ratio: float) -> str:
    """Our time over another's, bold where ours is the longer."""
    text = f"{ratio:.2f}"
    return f"**{text}**" if float(text) > 1 else text


def block_table(page: Page, path: Path, content: Mapping[str, Any], **wanted: Any) -> None:
    """Ours against everybody, block by block."""
    cases = cases_of(content, **wanted)
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
                f"{ours['median'] * 1e6:.0f}" if ours else "—",
                f"{peak / 1e6:.1f}" if peak is not None else "—",
                "; ".join(others),
            ]
        )
    page.table(["case", "ours, µs", "ours, MB at most", "our time over others' (quartiles)"], rows)
    page.add(f"*{page.source(path, content)}. In bold: ours is slower.*")


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
    for case in cases_of(content):
        memory_of = {who: size / 1e6 for who, size in case["peak_bytes"].items() if size is not None}
        rows.append(
            [
                f"{case['site']}, {side(case)}², batch {case['batch']}, {case['dtype']}, {case['direction']}",
                f"{medians(case).get('ours', float('nan')) * 1e3:.2f}",
                ", ".join(f"{plots.words(who)} {over(q['median'])}" for who, q in case["ours_over"].items()),
                ", ".join(f"{plots.words(who)} {size:.0f}" for who, size in memory_of.items()),
                "; ".join(f"{who}: {why}" for who, why in case["not_timed"].items()).replace("|", "/") or "—",
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


def counted(page: Page) -> None:
    """Traffic and machine code."""
    page.add("## Counted")
    path = page.results / "traffic.json"
    if content := read(path):
        page.add(
            "### Traffic",
            "",
            "Bytes that a block moves, in passes over its map, forward and backward: ours under Triton's interpreter, "
            "load by load, eager PyTorch operator by operator. Fewer bytes are not yet less time.",
        )
        rows = {row["case"]: row for row in content["rows"] if row["layout"] == "channels_last" and row["shortcut"]}
        data = {
            who: {
                block: [rows[block][who][way]["total"] for way in ("forward", "backward")]
                for block in GATES
                if block in rows and rows[block]["ours"]
            }
            for who in ("ours", "eager")
        }
        size = (9.0, 3.6)
        source = f"with shortcut and ReLU, channels_last, {content['dtype']}; {page.source(path, content)}"
        page.figure("traffic", "traffic by block", data, plots.traffic(data), size, source)
    else:
        page.add("Traffic is not counted: `make traffic` counts it.")
    path = page.results / "compile" / "report.json"
    if content := read(path):
        page.add("### Machine code", "", "The worst of every block's kernels, compiled with no GPU at hand:")
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in content["rows"]:
            groups.setdefault((row["target"], row["kernel"].partition("_kernel")[0]), []).append(row)
        rows_of: dict[str, list[list[dict[str, Any]]]] = {}
        for (target, _), each in groups.items():
            rows_of.setdefault(target, []).append(each)
        page.table(
            ["target", "kernels", "programs", "registers, up to", "programs' kinds that spill", "shared bytes, up to"],
            [
                [
                    target,
                    str(len(kernels)),
                    str(sum(row["programs"] for each in kernels for row in each)),
                    str(max(row["registers"] for each in kernels for row in each)),
                    str(sum(row["spilled"] > 0 for each in kernels for row in each)),
                    str(max(row["shared"] for each in kernels for row in each)),
                ]
                for target, kernels in rows_of.items()
            ],
        )
        page.add(
            f"*{page.source(path, content)}. What spills is non-local in float32, on sm_80 and on gfx942, "
            "which [its page](blocks/nonlocal.md) explains.*"
        )
    else:
        page.add("Machine code is not read: `make compile-report` does.")


def on_cpu(page: Page) -> None:
    """What a CPU user gets: side by side with timm's blocks, and with the tutorial's formula."""
    page.add("## On a CPU")
    folder = page.results / "cpu"
    contents = {suite: read(folder / f"{suite}.json") for suite in ("blocks", "models", "nonlocal")}
    for suite, words in (("blocks", "blocks"), ("models", "networks"), ("nonlocal", "non-local attention")):
        if not contents[suite]:
            page.add(f"No {words} have been measured here: `make bench` measures them.")
    if found := contents["blocks"]:
        page.add(
            "### Blocks",
            "",
            "A CPU runs the plain twins. Each is timed beside the tutorial's formula written step by step, and timm's "
            "block with the same weights, in turns. The picture has, of every block and direction, the site and layout "
            "where ours does worst: the median over rounds, its quartiles, and the goal as a dashed line.",
        )
        if found.get("freed_memory_is_kept"):
            page.add(
                "Here and in networks the process keeps the memory that it frees. Left to itself, glibc's allocator "
                "gives maps of some ten megabytes back to the system and takes them anew, or does not, by chance: "
                "up to half of the time, to whoever is at work."
            )
        if data := worst_on_cpu(found):
            size = (9.0, 1.2 + 0.16 * max(map(len, data.values())))
            source = page.source(folder / "blocks.json", found)
            page.figure("cpu-blocks", "blocks on a CPU", data, plots.ratios(data, CPU_AT_MOST), size, source)
        block_table(page, folder / "blocks.json", found)
    if found := contents["models"]:
        tax_section(page, folder / "models.json", found)
    if found := contents["nonlocal"]:
        attention_section(page, folder / "nonlocal.json", found)


def worst_on_cpu(content: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """By rival, block and direction: the case with the greatest ratio of ours to it."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in cases_of(content):
        for label, ratio in case["ours_over"].items():
            rival = label.partition(" ")[0]  # timm's own formula is timm's counterpart, too
            if rival in ("formula", "timm"):
                name = f"{case['block']}, {case['direction']}"
                worst = found.setdefault(rival, {}).setdefault(name, ratio)
                if ratio["median"] > worst["median"]:
                    found[rival][name] = ratio
    return found


def stale(page: Page, path: Path, text: str) -> Iterator[str]:
    """What of the page is not as the files say."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        yield f"{path} is not what the result files say"
    yield from (f"{each} is missing" for each in page.missing)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its pictures, or with --check say what is stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--output", type=Path, default=DOCS, metavar="DIR", help="default: docs")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is stale")
    arguments = parser.parse_args(argv)
    if not arguments.results.is_dir():
        parser.error(f"--results: expected a folder with result files, got {arguments.results}")
    page, path = Page(arguments.output, arguments.results, arguments.check), arguments.output / "performance.md"
    try:
        build(page)
    except ResultError as error:
        print(f"benchmarks.report: error: {error}", file=sys.stderr)
        return 2
    text = "\n".join(page.lines).rstrip() + "\n"
    if arguments.check:
        lines = list(stale(page, path, text))
        print("\n".join(lines), end="\n" if lines else "")
        return int(bool(lines))
    write(path, text)
    print(f"written: {path}, {arguments.output / 'performance'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
