"""Put the counted traffic into the pages of the blocks: ``python -m benchmarks.docs [--check]``.

A page has the lines ``<!-- traffic: NAME -->`` and ``<!-- end of traffic -->``; what stands between them is written
from ``benchmarks/results/traffic.json``. ``--check`` fails where a page says something else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.counted.traffic import held
from benchmarks.files import RESULTS, write

PAGES = Path(__file__).resolve().parents[1] / "docs" / "blocks"
SECTION = re.compile(r"(<!-- traffic: (\w+) -->\n).*?(<!-- end of traffic -->)", re.DOTALL)


def table(counted: dict[str, Any], block: str) -> str:
    """What a block moves and keeps, ours and eager, as Markdown."""
    rows = [row for row in counted["rows"] if row["block"] == block and row["ours"]]
    if not rows:
        raise ValueError(f"no traffic of {block!r} has been counted")
    shape = "(" + ", ".join(map(str, rows[0]["shape"])) + ")"
    found = counted["versions"]
    lines = [
        f"One T is one pass over the map. Small tensors are included; counted at {shape}, {counted['dtype']}, "
        f"torch {found['torch']}, Triton {found['triton']}. Kept for the backward is what autograd saves but for "
        "parameters, x among it. An output that is saved costs nothing more where the layer behind keeps it too.",
        "",
        "| | forward, T | backward, T | launches | kept, T | eager PyTorch, T | its launches | it keeps, T |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        parts = (
            row["case"].removeprefix(block).lstrip(", "),
            row["layout"],
            row["shortcut"] and "with shortcut and ReLU",
        )
        what = ", ".join(part for part in parts if part)
        ours, eager = ([row[who][way] for way in ("forward", "backward")] for who in ("ours", "eager"))
        cells = [what, *(f"{each['total']:.2f}" for each in ours), " + ".join(str(each["launches"]) for each in ours)]
        cells += [held(row["ours"]["kept"]), " + ".join(f"{each['total']:.1f}" for each in eager)]
        cells += [" + ".join(str(each["launches"]) for each in eager), held(row["eager"]["kept"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filled(page: str, counted: dict[str, Any]) -> str:
    """The page with its sections as counted."""
    return SECTION.sub(lambda found: f"{found[1]}{table(counted, found[2])}\n{found[3]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or with --check say which are not as counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not as counted")
    arguments = parser.parse_args(argv)
    counted = json.loads((RESULTS / "traffic.json").read_text())
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text()
        new = filled(page, counted)
        if new != page:
            stale.append(path.name)
            if not arguments.check:
                write(path, new)
    if stale:
        print(("not as counted: " if arguments.check else "written: ") + ", ".join(stale))
    return int(bool(stale) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
