"""What the README and the pages of docs have between ``<!-- KIND: NAME -->`` and ``<!-- end of KIND -->``, of files.

``traffic: BLOCK`` is what a block moves and keeps, of ``all`` a line each; ``tax: GPU`` the attention tax that was
measured there; ``cost: GPU`` what every block costs, of both families.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.counted.traffic import held
from benchmarks.files import ResultError, load, markdown
from benchmarks.timed.cases import INFERENCE, TRAINING
from triton_attn import create_attention, list_attention

MODES = (INFERENCE, TRAINING)
CHANNELS = 256  # that parameters are counted at


def counted(results: Path, **wanted: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was counted, and the rows of it that are like that."""
    content = load(results / "traffic.json")
    return content, [row for row in content["rows"] if wanted.items() <= row.items()]


def passes(row: dict[str, Any], who: str, digits: int = 1) -> list[str]:
    return [f"{row[who][way]['total']:.{digits}f}" for way in ("forward", "backward")]


def launches(row: dict[str, Any], who: str) -> str:
    return " + ".join(str(row[who][way]["launches"]) for way in ("forward", "backward"))


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
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "": lambda row: ", ".join(
            filter(
                None,
                (
                    row["case"].removeprefix(block).lstrip(", "),
                    row["layout"],
                    row["shortcut"] and "with shortcut and ReLU",
                ),
            )
        ),
        "forward, T": lambda row: passes(row, "ours", 2)[0],
        "backward, T": lambda row: passes(row, "ours", 2)[1],
        "launches": lambda row: launches(row, "ours"),
        "kept, T": lambda row: held(row["ours"]["kept"]),
        "eager PyTorch, T": lambda row: " + ".join(passes(row, "eager")),
        "its launches": lambda row: launches(row, "eager"),
        "it keeps, T": lambda row: held(row["eager"]["kept"]),
    }
    about = (
        f"One T is one pass over the map. Small tensors are included; counted at {shape(rows[0])}, {content['dtype']}, "
        f"torch {content['versions']['torch']}, Triton {content['versions']['triton']}. Kept for the backward is what "
        "autograd saves but for parameters, x among it. An output that is saved costs nothing more where the layer "
        "behind keeps it too.\n\n"
    )
    found = markdown(columns, ([cell(row) for cell in columns.values()] for row in rows))
    return found if block == "all" else about + found


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
