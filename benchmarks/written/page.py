"""The pages of docs that result files write: ``python -m benchmarks.written.page [--results DIR] [--output DIR]``.

``performance.md`` with its pictures, and the tables of other pages and of the README (``tables.py``). Every table says
which file it is from, on which device, with which versions, and when; what is slower than its rival stands beside what
is faster. ``--check`` writes nothing, and fails where a page is not what the files say, or a picture is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.counted import predicted
from benchmarks.files import RESULTS, ROOT, ResultError, load, write
from benchmarks.written import plots, sections
from benchmarks.written.claims import gpu_folders
from benchmarks.written.sections import Page
from benchmarks.written.tables import MARKED, filled

DOCS = ROOT / "docs"


def performance(results: Path) -> Page:
    """The performance page."""
    page = Page(results)
    page.add(
        "# Performance",
        "",
        "<!-- Written by `python -m benchmarks.written.page` from the files in benchmarks/results. -->",
        "What the library claims, what was found, and the files that say so. Claims are of time and memory, measured "
        "on the device named; bytes, launches and registers are counted, which needs no GPU, and are the same every "
        "time. `make bench` makes the times on a CPU and the traffic, `make compile-report` the machine code, `make "
        "gpu` what needs a GPU, and `make report` this page from whatever there is.",
        "",
        "One T is one pass over the feature map: N·C·H·W·itemsize bytes. A ratio of times is the median over rounds in "
        "which all took turns, with its quartiles. A claim is decided by its worst case, and passes only if all that "
        "it names was measured.",
    )
    sections.claims(page)
    folders = gpu_folders(results)
    for folder in folders:
        found = next(load(path) for path in sorted(folder.glob("*.json")) if "device" in load(path))
        page.add(f"## On {found['device']}")
        absent = list(sections.measured(page, folder))
        if absent:
            page.add(f"Not measured on this device: {', '.join(absent)}. `make gpu` measures them.")
    if not folders:
        page.add("**No time on a GPU has been measured**: `make gpu` on a machine with one does.")
    page.add(
        "## Counted",
        "",
        "What every block moves stands in [one table](measuring.md#what-is-counted), and on its own page with what it "
        "keeps; what it may move and launch at most in `benchmarks/counted/ceilings.py`, which `make traffic` holds. "
        "`make guard`, which the tests run, fails where a byte, a launch, a register or a spill is more than before.",
    )
    if (results / predicted.FILE).exists() and (results / predicted.MEASURED).exists():
        sections.predictions(page, load(results / predicted.FILE), load(results / predicted.MEASURED))
    page.add(
        "## On a CPU",
        "",
        "A CPU runs the plain twins. Each is timed beside the tutorial's formula written step by step, and timm's "
        "block with the same weights (timm's CBAM is another formula with weights of its own), in turns. Of blocks and "
        "networks the process keeps the memory that it frees: left to itself, glibc's allocator gives maps of some ten "
        "megabytes back to the system and takes them anew, or does not, by chance: up to half of the time, to whoever "
        "is at work. Host time is that of Triton's real launcher over a driver that does nothing.",
    )
    list(sections.measured(page, results / "cpu"))
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages and pictures, or with --check say what is stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.written.page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--output", type=Path, default=DOCS, metavar="DIR", help="default: docs")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is stale")
    arguments = parser.parse_args(argv)
    if not arguments.results.is_dir():
        parser.error(f"--results: expected a folder with result files, got {arguments.results}")
    output, texts = arguments.output, dict[Path, str]()
    try:
        page = performance(arguments.results)
        texts[output / "performance.md"] = "\n".join(page.lines).rstrip() + "\n"
        for path in [*sorted(output.rglob("*.md")), *([ROOT / "README.md"] if output == DOCS else [])]:
            text = path.read_text(encoding="utf-8")
            if MARKED.search(text) and path not in texts:
                texts[path] = filled(text, arguments.results)
    except ResultError as error:
        print(f"benchmarks.written.page: error: {error}", file=sys.stderr)
        return 2
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    pictures = {output / "performance" / name: picture for name, picture in page.pictures.items()}
    if arguments.check:
        files = [path.with_suffix(end) for path in pictures for end in (".png", ".svg")]
        lines = [f"{path} is not what the result files say" for path in stale]
        lines += [f"{path} is missing" for path in files if not path.exists()]
        print("\n".join(lines), end="\n" if lines else "")
        return int(bool(lines))
    for path in stale:
        write(path, texts[path])
    for path, picture in pictures.items():
        plots.save(path, *picture)
    print(f"written: {', '.join(map(str, [*stale, output / 'performance']))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
