"""The performance page from result files: ``python -m benchmarks.report [--results DIR] [--output DIR] [--check]``.

Writes ``performance.md`` and the pictures ``performance/*.png`` and ``.svg``. Every figure and table says which file it
is from, on which device, with which versions, and when. What was not measured is said to be so, with the command that
would; what is slower than its rival stands beside what is faster. ``--check`` writes nothing, and fails where the page
is not what the files say, or a picture is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.claims import (
    CPU_AT_MOST,
    SUITES,
    ResultError,
    cases_of,
    gpu_folders,
    judge,
)
from benchmarks.counted.traffic import held
from benchmarks.evidence import OPEN, PASS, SO_FAR, Claim
from benchmarks.files import RESULTS, write
from benchmarks.page import Page, read
from benchmarks.sections import (
    GATES,
    attention_section,
    block_table,
    calls_section,
    host_section,
    roofline_section,
    tax_section,
    tuning_section,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"


def build(page: Page) -> None:
    """All sections."""
    claims = judge(page.results)
    page.add(
        "# Performance",
        "",
        "<!-- Written by `python -m benchmarks.report` from the files in benchmarks/results. -->",
        "What the library claims, what was found, and the files that say so. **Measured** is time on the device "
        "named; **counted** is bytes, launches and registers, which need no GPU and are the same every time. "
        "`make bench` makes the times on a CPU and the traffic, `make compile-report` the machine code, `make gpu` "
        "what needs a GPU, and `make report` this page from whatever there is.",
        "",
        "One T is one pass over the feature map: N·C·H·W·itemsize bytes. A ratio of times is the median over rounds in "
        "which all took turns, with its quartiles. A claim is decided by its worst case, and passes only if all that "
        "it names was measured.",
    )
    folders = gpu_folders(page.results)
    if not folders:
        page.add(
            "**No time on a GPU has been measured yet**: none was at hand. Every claim about a GPU's speed is open. "
            "`make gpu` on a machine with one measures for eight minutes, and goes on from there when called again."
        )
    verdicts(page, claims)
    for folder in folders:
        on_gpu(page, folder)
    counted(page)
    if found := read(page.results / "cpu" / "host_time.json"):
        page.add("## Without a GPU, over a driver that does nothing")
        host_section(page, page.results / "cpu" / "host_time.json", found)
    on_cpu(page)


def verdicts(page: Page, claims: Sequence[Claim]) -> None:
    """The table of claims: those that fall short first."""
    page.add("## Claims")
    order = {SO_FAR: 1, PASS: 2, OPEN: 3}
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


def on_gpu(page: Page, folder: Path) -> None:
    """What was measured on one GPU."""
    contents = {suite: read(folder / f"{suite}.json") for suite in SUITES}
    known = (*contents.values(), read(folder / "host_time.json"))
    device = next(each["device"] for each in known if each)
    page.add(f"## On {device}")
    if found := contents["models"]:
        tax_section(page, folder / "models.json", found)
    if found := contents["blocks"]:
        roofline_section(page, folder / "blocks.json", found)
        block_table(page, folder / "blocks.json", found, dtype="bfloat16", layout="channels_last", direction="training")
    if found := contents["calls"]:
        calls_section(page, folder / "calls.json", found)
    if found := read(folder / "host_time.json"):
        host_section(page, folder / "host_time.json", found)
    if found := contents["nonlocal"]:
        attention_section(page, folder / "nonlocal.json", found)
    if found := contents["autotune"]:
        tuning_section(page, folder / "autotune.json", found)
    absent = [suite for suite, content in contents.items() if not content]
    if absent:
        page.add(f"Not measured on this device: {', '.join(absent)}. `make gpu` measures them.")


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
        kept_table(page, path, content)
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
        page.add(f"*{page.source(path, content)}. {spilling(content['rows'])}*")
    else:
        page.add("Machine code is not read: `make compile-report` does.")


def kept_table(page: Page, path: Path, content: Mapping[str, Any]) -> None:
    """What every block keeps between its two directions."""
    page.add(
        "### Kept for the backward",
        "",
        "What autograd saves in a block's forward, in T: every storage once, x among them, parameters left out. An "
        "output that is saved costs nothing more where the layer behind keeps it too, as a convolution does.",
    )
    rows: dict[str, list[str]] = {}
    for row in content["rows"]:
        if row["layout"] == "channels_last" and row["ours"]:  # without the tail, then with it
            rows.setdefault(row["case"], []).extend(held(row[who]["kept"]) for who in ("ours", "eager"))
    head = ["block", "ours, T", "eager PyTorch, T", "with shortcut and ReLU: ours, T", "eager PyTorch, T"]
    page.table(head, [[case, *cells] for case, cells in rows.items()])
    page.add(f"*channels_last, {content['dtype']}; {page.source(path, content)}*")


def spilling(rows: Sequence[Mapping[str, Any]]) -> str:
    """Who spills registers, in words."""
    found = [row for row in rows if row["spilled"]]
    if not found:
        return "Nothing spills registers."
    where = sorted({f"{row['target']} in {row['dtype']}" for row in found})
    blocks = ", ".join(sorted({block for row in found for block in row["blocks"].split(", ")}))
    return f"What spills registers are kernels of {blocks}: {'; '.join(where)}. The blocks' pages say why."


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
            "block with the same weights (timm's CBAM is another formula with weights of its own), in turns. The "
            "picture has, of every block and direction, the site and layout where ours does worst: the median over "
            "rounds, its quartiles, and the goal as a dashed line.",
        )
        if found.get("freed_memory_is_kept"):
            page.add(
                "Here and in networks the process keeps the memory that it frees. Left to itself, glibc's allocator "
                "gives maps of some ten megabytes back to the system and takes them anew, or does not, by chance: "
                "up to half of the time, to whoever is at work. Non-local attention is timed with the allocator as it "
                "is: matrices of its size it never keeps."
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
