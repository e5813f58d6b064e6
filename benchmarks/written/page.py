"""The pages of docs that result files write: ``python -m benchmarks.written.page [--results DIR] [--output DIR]``.

What stands between ``<!-- KIND: NAME -->`` and ``<!-- end of KIND -->``, in the README too, and ``performance.md``'s
pictures. Every table says which file it is from, on which device, with which versions, and when; what is slower than
its rival stands beside what is faster. ``--check`` writes nothing, and fails where a page is not what the files say, or
a picture is missing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.files import RESULTS, ROOT, ResultError, write
from benchmarks.written import plots, sections, tables
from benchmarks.written.sections import Pictures

DOCS = ROOT / "docs"
PERFORMANCE = "performance.md"
MARKED = re.compile(r"<!-- (\w+): ([\w-]+) -->\n.*?<!-- end of \1 -->", re.DOTALL)
KINDS = {
    "claims": sections.claimed,
    "measured": sections.measured,
    "predicted": sections.predictions,
    "traffic": tables.traffic,
    "tax": tables.tax,
    "cost": tables.cost,
}


def filled(page: str, results: Path, pictures: Pictures) -> str:
    """A page with its tables as the result files have them.

    Raises:
        ResultError: a file cannot be read, or has nothing of that name.
    """

    def table(found: re.Match[str]) -> str:
        kind, name = found.groups()
        return f"<!-- {kind}: {name} -->\n{KINDS[kind](results, name, pictures)}\n<!-- end of {kind} -->"

    return MARKED.sub(table, page)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages and pictures, or with --check say what is stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.written.page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--output", type=Path, default=DOCS, metavar="DIR", help="default: docs")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is stale")
    arguments = parser.parse_args(argv)
    results, output = arguments.results, arguments.output
    if not results.is_dir():
        parser.error(f"--results: expected a folder with result files, got {results}")
    # Elsewhere the performance page is made of the one in docs.
    pages = {path: path for path in sorted(output.rglob("*.md"))} | {output / PERFORMANCE: DOCS / PERFORMANCE}
    pages |= {ROOT / "README.md": ROOT / "README.md"} if output == DOCS else {}
    texts, pictures = {path: read.read_text(encoding="utf-8") for path, read in pages.items()}, Pictures()
    try:
        texts = {path: filled(text, results, pictures) for path, text in texts.items()}
    except ResultError as error:
        print(f"benchmarks.written.page: error: {error}", file=sys.stderr)
        return 2
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    drawn = {output / "performance" / name: picture for name, picture in pictures.items()}
    if arguments.check:
        files = [path.with_suffix(end) for path in drawn for end in (".png", ".svg")]
        lines = [f"{path} is not what the result files say" for path in stale]
        lines += [f"{path} is missing" for path in files if not path.exists()]
        print("\n".join(lines), end="\n" if lines else "")
        return int(bool(lines))
    for path in stale:
        write(path, texts[path])
    for path, picture in drawn.items():
        plots.save(path, *picture)
    print(f"written: {', '.join(map(str, [*stale, output / 'performance']))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
