"""What the gate blocks are held to at ResNet-50's sites, counted: ``python -m benchmarks.counted.goals``.

In bfloat16, channels_last, forward and backward, at a batch of 16, the smallest that the goals are for: what a batch
has once, the weights and their gradients, weighs most there. A block

asks the L2 cache for at most 1.3 times the bytes of its passes over the map. A launch asks for a map whole or not at
    all: what a few programs ask for, times all of them, is rounded to whole passes, and counted as it is elsewhere;
multiplies matrices on tensor cores, where that is more than 2¹⁶ multiply-adds;
starts 264 programs at least wherever the map is touched, or one for each 8 KB of a map that has fewer;
starts at most 4 launches forward and 6 backward, with PyTorch's.

What cannot be so stands in EXCEPTIONS, with the most that it may be and why. With ``--some`` programs run for the sites
where a network weighs most beside the map, LARGEST; of the others launches and programs alone are counted anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import SITES
from benchmarks.files import RESULTS, load, versions, write

BLOCKS = ("se", "eca", "coordinate", "cbam", "dual")
BATCH, PROGRAMS, PIECE, SMALL = 16, 264, 8192, 2**16
FILE, LARGEST = "goals.json", ("layer3", "layer4")
L2, FORWARD, BACKWARD, FEWEST, DENSE = (
    "L2 over the passes",
    "launches forward",
    "launches backward",
    "programs over the goal",
    "tensor cores over the products",
)
# Of products a part of the programs is counted; one that left tensor cores would be a sixth of all, or more.
GOALS = {L2: 1.3, FORWARD: 4, BACKWARD: 6, FEWEST: 1.0, DENSE: 0.9}
AT_LEAST = (FEWEST, DENSE)
# By block, site ("" for all) and goal: the limit in the goal's place, and why.
EXCEPTIONS: dict[tuple[str, str, str], tuple[float, str]] = {
    ("coordinate", "layer4", L2): (1.42, "two vectors go through the network, and maxima come with where they are"),
    ("coordinate", "layer2", FEWEST): (0.96, "256 programs: twice as many would write twice the parts of maxima"),
    ("coordinate", "layer3", FEWEST): (0.96, "256 programs: twice as many would write twice the parts of maxima"),
    ("cbam", "layer4", L2): (1.38, "SE's network, and for every position float32 values beside 49 · 2,048 of the map"),
    ("dual", "layer4", L2): (1.65, "two networks, each with the bytes of SE's"),
    ("cbam", "", FORWARD): (6, "the gate of positions takes pooling, a convolution and a pass of its own"),
    ("cbam", "", BACKWARD): (7, "likewise, and the convolution's parameters"),
    ("dual", "", FORWARD): (8, "as CBAM, with a second network behind the first"),
    ("dual", "", BACKWARD): (9, "as CBAM, with a second network behind the first"),
}


def limit(block: str, site: str, goal: str) -> float:
    """What a block is held to at a site."""
    for where in (site, ""):
        if (block, where, goal) in EXCEPTIONS:
            return EXCEPTIONS[block, where, goal][0]
    return GOALS[goal]


def found(steps: Sequence[Any], shape: tuple[int, ...], matrices: int) -> dict[str, float]:
    """What was counted of a block's steps on a map of this shape, whose network has so many multiply-adds."""
    size = 2 * math.prod(shape)
    of_map, others, programs = 0, 0, [PROGRAMS]
    for step in steps:
        maps = [each for each in step.touched if 2 * each[1] >= size]
        of_map += sum(round(asked / length) * length for _, length, asked, _ in maps)
        others += sum(each[2] for each in step.touched if each not in maps)
        programs += [step.programs] if maps and step.programs else []
    return {
        L2: 1 + others / of_map if of_map else math.nan,
        FORWARD: sum(step.launches for step in steps if not step.backward),
        BACKWARD: sum(step.launches for step in steps if step.backward),
        FEWEST: min(programs) / min(PROGRAMS, size // PIECE),
        DENSE: sum(step.products for step in steps) / matrices if matrices > SMALL else 1.0,
    }


def matrices(block: str, shape: tuple[int, ...]) -> int:
    """The multiply-adds of a block's matrices, forward and of both gradients; of the first for each pooled vector."""
    import triton_attn

    weights = triton_attn.create_attention(block, shape[1], device="meta").parameters()
    sizes = [each.numel() for each in weights if each.dim() > 1 and min(each.shape[:2]) > 1]
    return 3 * shape[0] * (sum(sizes) + (sizes[0] if block == "coordinate" else 0))


def missed(block: str, site: str, counts: Mapping[str, float]) -> Iterator[str]:
    """A line for every goal that a block does not reach at a site."""
    for goal, value in counts.items():
        most = limit(block, site, goal)
        if value < most if goal in AT_LEAST else value > most:
            yield f"{block}, {site}: {goal} is {value:.4g}, the limit {most:.4g}"


def rows(some: bool) -> list[dict[str, Any]]:
    """All cases, counted; or some, the others as they are in the committed file but for what needs no programs."""
    from benchmarks.counted import work

    every, committed = [], {}
    if some:
        committed = {(row["block"], row["site"]): row["counts"] for row in load(RESULTS / FILE)["rows"]}
    for block in BLOCKS:
        for site, (_, *rest) in SITES.items():
            shape = (BATCH, *rest)
            runs = not some or site in LARGEST
            steps = (work.counted if runs else work.steps)(block, shape)
            counts = found(steps, shape, matrices(block, shape))
            if not runs:
                counts |= {goal: committed[block, site][goal] for goal in (L2, DENSE)}
            every.append({"block": block, "site": site, "counts": counts})
    return every


def main(argv: Sequence[str] | None = None) -> int:
    """Count, write, and say what is not reached: 1 where there is such."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted.goals", description=__doc__)
    parser.add_argument("--some", action="store_true", help="run programs of the sites with the largest networks alone")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    os.environ["TRITON_INTERPRET"] = "1"  # Triton is imported later than this
    every = rows(arguments.some)
    content = {"versions": versions(), "batch": BATCH, "rows": every}
    write(arguments.output, json.dumps(content, indent=1) + "\n")
    lines = [line for row in every for line in missed(row["block"], row["site"], row["counts"])]
    print("\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
