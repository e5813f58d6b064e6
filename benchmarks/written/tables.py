"""What the README and the pages of docs have between ``<!-- KIND: NAME -->`` and ``<!-- end of KIND -->``, of files.

``traffic: BLOCK`` is what a block moves and keeps, of ``all`` a line each; ``tax: GPU`` the attention tax that was
measured there; ``cost: GPU`` what every block costs, of both families.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.counted.traffic import held
from benchmarks.files import ResultError, load
from benchmarks.timed import cases
from benchmarks.written.claims import records
from triton_attn import create_attention, list_attention

MARKED = re.compile(r"<!-- (\w+): ([\w-]+) -->\n.*?<!-- end of \1 -->", re.DOTALL)
MODES = (cases.INFERENCE, cases.TRAINING)
CHANNELS = 256  # that parameters are counted at


def filled(page: str, results: Path) -> str:
    """A page with its tables as the result files have them.

    Raises:
        ResultError: a file cannot be read, or has nothing of that name.
    """
    return MARKED.sub(
        lambda found: (
            f"<!-- {found[1]}: {found[2]} -->\n{KINDS[found[1]](results, found[2])}\n<!-- end of {found[1]} -->"
        ),
        page,
    )


def table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    heads = [cell.strip() for cell in head.split("|")]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def traffic_of(results: Path, block: str) -> str:
    """What a block moves and keeps, ours and eager."""
    counted = load(results / "traffic.json")
    one = {"layout": "channels_last", "shortcut": False}
    rows = [row for row in counted["rows"] if row["block"] == block and row["ours"]]
    if block == "all":
        served = (row for row in counted["rows"] if row["ours"] and "." not in row["block"])
        rows = [{**row, "layout": "", "shape": ()} for row in served if one.items() <= row.items()]
    if not rows:
        raise ResultError(f"no traffic of {block!r} has been counted")
    versions = counted["versions"]
    about = (
        f"One T is one pass over the map. Small tensors are included; counted at {shape(rows[0])}, {counted['dtype']}, "
        f"torch {versions['torch']}, Triton {versions['triton']}. Kept for the backward is what autograd saves but for "
        "parameters, x among it. An output that is saved costs nothing more where the layer behind keeps it too.\n\n"
    )
    cells = []
    for row in rows:
        variant = row["case"].removeprefix(block).lstrip(", ")
        parts = (variant, row["layout"], row["shortcut"] and "with shortcut and ReLU")
        ours, eager = ([row[who][way] for way in ("forward", "backward")] for who in ("ours", "eager"))
        launches = (" + ".join(str(each["launches"]) for each in who) for who in (ours, eager))
        cells.append(
            [
                ", ".join(part for part in parts if part),
                *(f"{each['total']:.2f}" for each in ours),
                *(next(launches), held(row["ours"]["kept"])),
                " + ".join(f"{each['total']:.1f}" for each in eager),
                *(next(launches), held(row["eager"]["kept"])),
            ]
        )
    head = "| forward, T | backward, T | launches | kept, T | eager PyTorch, T | its launches | it keeps, T"
    return (about if block != "all" else "") + table(head, cells)


def shape(row: dict[str, list[int]]) -> str:
    return "(" + ", ".join(map(str, row["shape"])) + ")"


def taxes(results: Path, gpu: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """By attention, where, mode: each one's tax."""
    found = records(load(results / gpu / "models.json"), compiled=False)
    return {
        (case["attention"], case["where"], case["mode"]): {who: each["median"] for who, each in case["tax"].items()}
        for case in found
        if "tax" in case
    }


def tax_of(results: Path, gpu: str) -> str:
    """The attention tax, by attention in every block and by where non-local is meant to stand."""
    found = taxes(results, gpu)
    rows = []
    for where in ("block", "stem+layer4"):
        for attention in sorted({name for name, at, _ in found if at == where}):
            paid = [found.get((attention, where, mode), {}) for mode in MODES]
            if not all(paid) or (where != "block" and attention != "nonlocal"):
                continue
            cells = []
            for each in paid:
                lost = any(each["ours"] > other for who, other in each.items() if who != "ours")
                cells.append(f"**{each['ours']:.1%}**" if lost else f"{each['ours']:.1%}")
                cells += [f"{each[who]:.1%}" if who in each else "" for who in ("eager", "timm")]
            rows.append([attention, where, *cells])
    return table("attention | where | inference: ours | eager | timm | training: ours | eager | timm", rows)


def cost_of(results: Path, gpu: str) -> str:
    """Every block's parameters, counted passes and tax."""
    found = taxes(results, gpu)
    one = {"layout": "channels_last", "shortcut": False}
    moved = {row["case"]: row for row in load(results / "traffic.json")["rows"] if one.items() <= row.items()}
    rows = []
    for name in (*list_attention("tutorial"), *list_attention("published")):
        block = create_attention(name, CHANNELS, device="meta")
        passes = ["—", "—", "—"]
        if row := moved.get(name):
            ways = [
                " + ".join(f"{row[who][way]['total']:.1f}" for way in ("forward", "backward"))
                for who in ("ours", "eager")
            ]
            passes = [*ways, shape(row)]
        paid = [found.get((name, "block", mode)) for mode in MODES]
        tax = [f"{each['ours']:.1%}, eager {each['eager']:.1%}" if each else "—" for each in paid]
        rows.append([f"`{name}`", f"{sum(p.numel() for p in block.parameters()):,}", *passes, *tax])
    head = f"block | parameters at {CHANNELS} channels | passes over the map, T | eager PyTorch's, T | counted at"
    return table(f"{head} | tax, {MODES[0]} | tax, {MODES[1]}", rows)


KINDS: dict[str, Callable[[Path, str], str]] = {"traffic": traffic_of, "tax": tax_of, "cost": cost_of}
