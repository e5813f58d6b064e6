"""The pages of docs that result files write: ``python -m benchmarks.written.page [--results DIR] [--output DIR]``.

What stands between ``<!-- KIND: NAME -->`` and ``<!-- end of KIND -->``, in the README too, and ``performance.md``'s
pictures: ``traffic: BLOCK`` is what a block moves and keeps, of ``all`` a line each; ``tax: GPU`` the attention tax
measured there, ``cost: GPU`` what every block costs. Every table says which file it is from, on which device, with
which versions, and when; what is slower than its rival stands beside what is faster. ``--check`` writes nothing, and
fails where a page is not what the files say, or a picture is missing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.counted.traffic import held
from benchmarks.files import RESULTS, ROOT, ResultError, load, markdown, write
from benchmarks.timed.cases import INFERENCE, TRAINING
from benchmarks.written import plots, sections
from benchmarks.written.sections import Pictures
from triton_attn import create_attention, list_attention

DOCS = ROOT / "docs"
PERFORMANCE = "performance.md"
MODES = (INFERENCE, TRAINING)
CHANNELS = 256  # that parameters are counted at
TAIL = {True: "with shortcut and ReLU", False: ""}
MARKED = re.compile(r"<!-- (\w+): ([\w.-]+) -->\n.*?<!-- end of \1 -->", re.DOTALL)


def counted(results: Path, **wanted: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was counted, and the rows of it that are like that."""
    content = load(results / "traffic.json")
    return content, [row for row in content["rows"] if wanted.items() <= row.items()]


def passes(row: dict[str, Any], who: str, digits: int = 1) -> list[str]:
    return [f"{row[who][way]['total']:.{digits}f}" for way in ("forward", "backward")]


def launches(row: dict[str, Any], who: str) -> str:
    return " + ".join(str(row[who][way]["launches"]) for way in ("forward", "backward"))


def planned(row: dict[str, Any]) -> tuple[str, str]:
    passes, launches = zip(*row["inductor"], strict=True) if "inductor" in row else ((), ())
    return " + ".join(f"{each:.1f}" for each in passes), " + ".join(map(str, launches))


def moved(row: dict[str, Any], block: str) -> list[str]:
    """What ours and eager move, start and keep."""
    case = row["case"].removeprefix(block).lstrip(", ")
    ours, eager = ((launches(row, who), held(row[who]["kept"])) for who in ("ours", "eager"))
    title = ", ".join(filter(None, (case, row["layout"], TAIL[row["shortcut"]])))
    return [title, *passes(row, "ours", 2), *ours, " + ".join(passes(row, "eager")), *eager]


def shape(row: dict[str, Any]) -> str:
    return f"({', '.join(map(str, row['shape']))})"


def traffic(results: Path, block: str, _: Any) -> str:
    """What a block moves and keeps, ours and eager."""
    if block == "all":
        content, rows = counted(results, layout="channels_last", shortcut=False)
        rows = [{**row, "layout": "", "shape": ()} for row in rows if "." not in row["block"]]
    else:
        content, rows = counted(results, block=block)
    rows = [row for row in rows if row["ours"]]
    if not rows:
        raise ResultError(f"no traffic of {block!r} has been counted")
    compiled = any("inductor" in row for row in rows)
    cells = [[*moved(row, block), *(planned(row) if compiled else ())] for row in rows]
    head = ["forward, T", "backward, T", "launches", "kept, T", "eager PyTorch, T", "its launches", "it keeps, T"]
    head += ["Inductor, T", "Inductor's launches"] if compiled else []
    plan = (
        " Inductor's are what torch.compile plans for the plain formula with its batch norm, at batch 64 in layer1; in "
        "evaluation the forward alone."
    )
    about = (
        f"One T is one pass over the map. Small tensors are included; counted at {shape(rows[0])}, {content['dtype']}, "
        f"torch {content['versions']['torch']}, Triton {content['versions']['triton']}. Kept for the backward is what "
        "autograd saves but for parameters, x among it. An output that is saved costs nothing more where the layer "
        f"behind keeps it too.{plan if compiled else ''}\n\n"
    )
    return ("" if block == "all" else about) + markdown(("", *head), cells)


def taxes(results: Path, gpu: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """By where, attention, mode: each one's tax."""
    cases = load(results / gpu / "models.json")["cases"].values()
    return {
        (case["where"], case["attention"], case["mode"]): {who: each["median"] for who, each in case["tax"].items()}
        for case in cases
        if "tax" in case and not case["compiled"]
    }


def tax(results: Path, gpu: str, _: Any) -> str:
    """The attention tax, by attention in every block and by where non-local is meant to stand."""
    found, rows = taxes(results, gpu), []
    for where, attention in sorted({key[:2] for key in found}):
        paid = [found.get((where, attention, mode)) for mode in MODES]
        if all(paid) and (where == "block" or (where, attention) == ("stem+layer4", "nonlocal")):
            cells = []
            for each in filter(None, paid):
                lost = each["ours"] > min(each.values())
                cells.append(f"**{each['ours']:.1%}**" if lost else f"{each['ours']:.1%}")
                cells += [f"{each[who]:.1%}" if who in each else "" for who in ("eager", "timm")]
            rows.append([attention, where, *cells])
    head = ("attention", "where", "inference: ours", "eager", "timm", "training: ours", "eager", "timm")
    return markdown(head, rows)


def cost(results: Path, gpu: str, _: Any) -> str:
    """Every block's parameters, counted passes and tax."""
    found = taxes(results, gpu)
    moved = {row["case"]: row for row in counted(results, layout="channels_last", shortcut=False)[1]}
    rows = []
    for name in (*list_attention("tutorial"), *list_attention("published")):
        parameters = sum(p.numel() for p in create_attention(name, CHANNELS, device="meta").parameters())
        row = moved.get(name)
        cells = [*(" + ".join(passes(row, who)) for who in ("ours", "eager")), shape(row)] if row else ["—"] * 3
        paid = [found.get(("block", name, mode)) for mode in MODES]
        taxed = [f"{each['ours']:.1%}, eager {each['eager']:.1%}" if each else "—" for each in paid]
        rows.append([f"`{name}`", f"{parameters:,}", *cells, *taxed])
    head = ("block", f"parameters at {CHANNELS} channels", "passes over the map, T", "eager PyTorch's, T", "counted at")
    return markdown((*head, *(f"tax, {mode}" for mode in MODES)), rows)


KINDS = {
    "claims": sections.claimed,
    "measured": sections.measured,
    "predicted": sections.predictions,
    "traffic": traffic,
    "tax": tax,
    "cost": cost,
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
