"""What every block moves and keeps, counted: ``python -m benchmarks.counted.traffic [--check] [--json]``.

Traffic is in T, one pass over the feature map. Ours is counted under Triton's interpreter, kernel by kernel, and where
an op calls PyTorch's operators, operator by operator; eager PyTorch likewise. What a block keeps for its backward is
counted by the tensors that autograd saves, in T as well. Nothing is timed here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import starmap
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.counted import inductor
from benchmarks.counted.ceilings import CEILINGS, over
from benchmarks.counted.kept import count_kept
from benchmarks.counted.meter import ROLES, Traffic, count
from benchmarks.files import RESULTS, load, markdown, today, versions, write

SHAPE = (2, 64, 28, 28)
# Partial gradients of parameters are as large as the parameters, per program: little beside a larger map.
SHAPES = {"gate": (2, 64, 56, 56), "pixel": (2, 64, 56, 56)}
# Published blocks, on the map that their ceilings are named for. SE and ECA are the tutorial's, and DANet's head is
# convolutions of the library around two that are here.
NAMED = "cbam channel coordinate gate global_context grid_gate nonlocal pixel position scse simam"
PUBLISHED = tuple(f"published.{name}" for name in NAMED.split())
SHAPES |= dict.fromkeys(PUBLISHED, (1, 256, 28, 28))
# Attention between positions is slow to interpret; what depends on the channels are the library's projections.
SHAPES |= {"published.nonlocal": (1, 64, 28, 28), "published.position": (2, 64, 14, 14)}
SHAPES |= {"published.channel": (1, 64, 28, 28)}  # beside more channels their matrix is not small
# What has no kernel, but passes of ours over the map: it may not be asked for by "triton".
WITHOUT_KERNELS = ("published.channel",)
DTYPE = torch.float16


@dataclass(frozen=True)
class Case:
    """A block on an input: the block's name, and what is special about the input, if anything."""

    block: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.block}, {self.variant}" if self.variant else self.block

    @property
    def shape(self) -> tuple[int, ...]:
        """The map it is counted on."""
        return SHAPES.get(self.block, SHAPE)


# What a residual block does behind its last convolution: the batch norm is counted too, training or not. In blocks of
# EfficientNets and MobileNets an activation is between, and no shortcut behind.
NORMED, ACTIVATED, IN_EVALUATION = "behind a batch norm", "behind a batch norm and ReLU", " in evaluation"
BEHIND = ("se", "eca", "published.coordinate", "published.cbam")
TAILS = [Case(block, NORMED + mode) for block in BEHIND for mode in ("", IN_EVALUATION)]
INSIDE = [Case("se", ACTIVATED + mode) for mode in ("", IN_EVALUATION)]
VARIANTS = [Case("coordinate", "maxima tied"), Case("gate", "own signal")]
# Of a tail also what Inductor plans, for ResNet-50's layer1 at batch 64: it splits the sums of smaller maps.
INDUCTOR_SHAPE = (64, 256, 56, 56)


@dataclass(frozen=True)
class Counted:
    """One direction of one side: T by role and in all, sectors over bytes, launches (all, and those over the map)."""

    total: float
    roles: dict[str, float]
    sectors: float
    launches: int
    map_launches: int

    @classmethod
    def of(cls, traffic: Traffic, size: int) -> Counted:
        """The traffic in passes over a map of ``size`` bytes."""
        return cls(
            total=traffic.total / size,
            roles={role: traffic.moved[role] / size for role in ROLES},
            sectors=traffic.total_sectors / max(traffic.total, 1),
            launches=traffic.launches.total(),
            map_launches=traffic.map_launches.total(),
        )


@dataclass(frozen=True)
class Held:
    """What one side keeps from its forward to its backward, in T, and how much of that is its output."""

    total: float
    output: float


@dataclass(frozen=True)
class Side:
    """Ours, or eager PyTorch: what it moves in both directions, and what it keeps between them."""

    forward: Counted
    backward: Counted
    kept: Held

    @property
    def both(self) -> tuple[Counted, Counted]:
        """Forward and backward."""
        return self.forward, self.backward


@dataclass(frozen=True)
class Row:
    """One case, layout and tail. ``ours`` is None where Triton does not serve the block, nor library calls of ours."""

    case: Case
    layout: str
    shortcut: bool
    shape: tuple[int, ...]
    eager: Side | None
    ours: Side | None = None
    inductor: tuple[tuple[float, int], ...] | None = None  # T and launches, both ways; in evaluation of an inference

    def excess(self) -> list[str]:
        """What of this row is over its ceiling; a block that is served must have one."""
        if self.ours is None:
            return []
        what = f"{self.case}, {self.layout}{', shortcut' if self.shortcut else ''}"
        ceiling = CEILINGS.get(str(self.case))
        if ceiling is None:
            return [f"{what}: has no ceiling"]
        if ceiling.channels is not None and self.shape[1] > ceiling.channels:
            return []
        forward, backward = self.ours.both
        return over(
            what,
            ceiling,
            self.shortcut,
            DTYPE.itemsize,
            self.shape[1],
            (forward.total, backward.total),
            (forward.sectors, backward.sectors),
            (forward.launches, backward.launches),
        )


def measure(
    case: Case, channels_last: bool, with_shortcut: bool, shape: Sequence[int] | None = None, ours_alone: bool = False
) -> Row:
    """Count one case, ours (where Triton serves it) and the others; Triton's interpreter must be on."""
    import triton_attn

    shape = tuple(shape or case.shape)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(shape).to(DTYPE).contiguous(memory_format=memory_format)

    grad, x = draw(), draw()
    if case.variant == "maxima tied":
        zero = torch.rand(shape[:2])[:, :, None, None] < 0.5  # half the channels are all zero
        x = x.relu().masked_fill(zero, 0.0).contiguous(memory_format=memory_format)
    else:
        x[:, :, 0, 0] = 8.0  # at 16 bits two maxima may tie by chance
    inputs = {"x": x}
    if case.variant == "own signal":
        inputs["gating"] = draw()
    if with_shortcut:
        inputs["shortcut"] = draw()
    inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    block = triton_attn.create_attention(case.block, shape[1]).to(DTYPE)
    norm = None
    if case in (*TAILS, *INSIDE):
        norm = torch.nn.BatchNorm2d(shape[1], dtype=DTYPE).train(not case.variant.endswith(IN_EVALUATION))
    parameters = [*block.parameters(), *(norm.parameters() if norm is not None else ())]
    served = triton_attn.explain(block, x[:1, :, :2, :2])[0].backend == "triton"

    def run(backend: Any) -> Side:
        with triton_attn.use_backend(backend):
            with count(x, parameters) as forward, count_kept(parameters) as kept:
                y = tail(block, norm, case in INSIDE, **inputs)
            size = x.numel() * x.itemsize
            held = Held(kept.total / size, kept.of(y) / size)
            with count(x, parameters) as backward:
                torch.autograd.grad(y, [*inputs.values(), *parameters], grad)
        return Side(Counted.of(forward, size), Counted.of(backward, size), held)

    return Row(
        case=case,
        layout="channels_last" if channels_last else "contiguous",
        shortcut=with_shortcut,
        shape=shape,
        eager=None if ours_alone else run("reference"),
        ours=run("triton") if served else run("auto") if case.block in WITHOUT_KERNELS else None,
        inductor=planned(case, memory_format, with_shortcut) if norm is not None and not ours_alone else None,
    )


def tail(block: Any, norm: Any, activated: bool, x: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
    """The block's output, for the batch norm's output if there is one: in one where the block has that."""
    if norm is None:
        return block(x, **others)
    if activated:
        from triton_attn import functional

        running = norm.running_mean, norm.running_var
        given = functional.BatchNorm(norm.weight, norm.bias, *running, norm.training, activation="relu")
        return functional.channel_gate(x, *block.weights(), norm=given)
    y = block.behind(norm, x, others.get("shortcut"))
    return block(norm(x), **others) if y is None else y


def planned(case: Case, memory_format: torch.memory_format, with_shortcut: bool) -> tuple[tuple[float, int], ...]:
    """What Inductor plans to move for the plain formula of a tail, in T, and in how many launches."""
    from triton_attn import reference

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(INDUCTOR_SHAPE[1], dtype=DTYPE)
            self.block = reference.registry.ALL[case.block](INDUCTOR_SHAPE[1], dtype=DTYPE)

        def forward(self, x: torch.Tensor, *shortcut: torch.Tensor) -> torch.Tensor:
            v = self.norm(x)
            y: torch.Tensor = self.block(torch.relu(v) if case in INSIDE else v, *shortcut)
            return y

    training = not case.variant.endswith(IN_EVALUATION)

    def make() -> tuple[torch.nn.Module, list[torch.Tensor]]:
        maps = (torch.empty(INDUCTOR_SHAPE, dtype=DTYPE) for _ in range(1 + with_shortcut))
        laid = [each.contiguous(memory_format=memory_format).requires_grad_(training) for each in maps]
        return Plain().train(training), laid

    size = math.prod(INDUCTOR_SHAPE) * DTYPE.itemsize
    return tuple((moved / size, launches) for moved, launches in inductor.moved(make, training))


def measure_all(
    names: Sequence[str],
    shape: Sequence[int] | None = None,
    ours_alone: bool = False,
    workers: int = 1,
    some: bool = False,
) -> list[Row]:
    """Every case of these blocks, by so many processes; in the same order, however many they are."""
    counted = partial(measure, shape=shape, ours_alone=ours_alone)
    jobs = few(cases(names)) if some else list(cases(names))
    if workers == 1:
        return list(starmap(counted, jobs))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(counted, *zip(*jobs, strict=True)))


Counting = tuple["Case", bool, bool]  # whether in channels_last, and with a shortcut


def cases(names: Sequence[str]) -> Iterator[Counting]:
    """Of these blocks both layouts, without and with a residual block's tail; of published ones one.

    ``"tails"`` are blocks with the batch norm in front, in channels_last, and SE with an activation behind that.
    """
    blocks = (name for name in names if name != "tails")
    for case in sorted([*map(Case, blocks), *(each for each in VARIANTS if each.block in names)], key=str):
        if case.block in PUBLISHED:  # layouts and shortcuts are their tests' affair
            yield case, True, False
            continue
        for channels_last in (False, True):
            for shortcut in (False, True):
                yield case, channels_last, shortcut
    if "tails" in names:
        for case in TAILS:
            yield from ((case, True, shortcut) for shortcut in (False, True))
        yield from ((case, True, False) for case in INSIDE)


def few(every: Iterable[Counting]) -> list[Counting]:
    """Where a few are enough: every case once, contiguous without a tail and in channels_last with one in turns."""
    found: dict[str, list[Counting]] = {}
    for each in every:
        found.setdefault(str(each[0]), []).append(each)
    return [of_case[-1 if i % 2 else 0] for i, of_case in enumerate(found.values())]


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    head = ["block", "layout", "shortcut + ReLU", "forward, T", "backward, T", "eager forward, T", "eager backward, T"]
    head += [
        "Inductor, T (launches)",
        "eager / ours",
        "kept, T",
        "eager keeps, T",
        "sectors / bytes",
        "launches (of them over the map)",
    ]
    head += ["eager launches"]
    lines = []
    for row in rows:
        if row.eager is None:
            continue  # with ours alone there is nothing to set side by side
        eager = [f"{each.total:.1f}" for each in row.eager.both]
        eager_launches = " + ".join(str(each.launches) for each in row.eager.both)
        ours = ["no kernel yet", ""]
        ratio = kept = sectors = launches = ""
        if row.ours is not None:
            ours = [f"{each.total:.2f}" for each in row.ours.both]
            ratio = f"{sum(each.total for each in row.eager.both) / sum(each.total for each in row.ours.both):.1f}"
            kept = held(asdict(row.ours.kept))
            sectors = f"{max(each.sectors for each in row.ours.both):.2f}"
            launches = " + ".join(f"{each.launches} ({each.map_launches})" for each in row.ours.both)
        tail = "yes" if row.shortcut else "no"
        plans = " + ".join(f"{total:.1f} ({launches})" for total, launches in row.inductor or ())
        cells = [str(row.case), row.layout, tail, *ours, *eager, plans, ratio, kept, held(asdict(row.eager.kept))]
        lines.append([*cells, sectors, launches, eager_launches])
    return markdown(head, lines)


def held(kept: Mapping[str, float]) -> str:
    """What is kept, and how much of it is the output, which a layer behind often keeps anyway."""
    text = f"{kept['total']:.2f}"
    return f"{text} ({kept['output']:.0f} its output)" if kept["output"] else text


def role_table(rows: list[Row]) -> str:
    """What the passes of the served blocks are made of: ours, forward and backward, by role of the tensor."""
    head = ["block", "layout", "shortcut + ReLU", *(f"{role}s, T" for role in ROLES)]
    lines = []
    for row in rows:
        if row.ours is not None:
            cells = [" + ".join(f"{each.roles[role]:.3f}" for each in row.ours.both) for role in ROLES]
            lines.append([str(row.case), row.layout, "yes" if row.shortcut else "no", *cells])
    return markdown(head, lines)


def left_out(names: Sequence[str]) -> list[dict[str, Any]]:
    """What the committed file says of the cases that are not counted where a few are enough."""
    counted = few(cases(names))
    left = {(str(case), *others) for case, *others in cases(names) if (case, *others) not in counted}
    rows = load(RESULTS / "traffic.json")["rows"]
    return [row for row in rows if (row["case"], row["layout"] == "channels_last", row["shortcut"]) in left]


def as_json(rows: list[Row], others: Sequence[dict[str, Any]] = ()) -> str:
    """The rows and what they were counted with, and others."""
    found = {
        "versions": versions(),
        "date": today(),
        "dtype": str(DTYPE).removeprefix("torch."),
        "rows": [
            {
                "case": str(row.case),
                "block": row.case.block,
                "layout": row.layout,
                "shortcut": row.shortcut,
                "shape": row.shape,
                "ours": row.ours and asdict(row.ours),
                "eager": row.eager and asdict(row.eager),
                **({} if row.inductor is None else {"inductor": row.inductor}),
            }
            for row in rows
        ]
        + [*others],
    }
    return json.dumps(found, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; with --check, fail where a ceiling is passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted.traffic", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a block moves more than its ceiling")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--ours", action="store_true", help="count neither eager PyTorch nor Inductor; no tables")
    parser.add_argument("--some", action="store_true", help="count every case once, the others as they were")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that count (default: 1)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to this file as well")
    parser.add_argument("--blocks", metavar="A,B", help="only these blocks")
    parser.add_argument("--shape", metavar="N,C,H,W", help="count at this shape")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers: expected at least 1, got {arguments.workers}")
    # Triton is imported with the first launch, later than this.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if os.environ["TRITON_INTERPRET"] != "1":
        parser.error("TRITON_INTERPRET must be 1 or unset: kernels are counted under Triton's interpreter")
    import triton_attn

    known = [*triton_attn.list_attention(), *PUBLISHED, "tails"]
    names = arguments.blocks.split(",") if arguments.blocks else known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"--blocks: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    shape = _shape(parser, arguments.shape) if arguments.shape else None

    rows = measure_all(names, shape, arguments.ours, arguments.workers, arguments.some)
    if arguments.output:
        write(arguments.output, as_json(rows, left_out(names) if arguments.some else ()))
    if arguments.json:
        print(as_json(rows), end="")
    elif not arguments.ours:
        shapes = sorted({row.shape for row in rows})
        found = ", ".join(f"{name} {version}" for name, version in versions().items())
        print(f"Counted at {', '.join(map(str, shapes))}, {str(DTYPE).removeprefix('torch.')}; {found}.\n")
        print(table(rows))
        print("\nOurs by role, forward + backward:\n")
        print(role_table(rows))
    excess = [line for row in rows for line in row.excess()]
    if arguments.check and excess:
        print("\n".join(["", "Over the ceiling:", *excess]), file=sys.stderr)
        return 1
    return 0


def _shape(parser: argparse.ArgumentParser, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        parser.error(f"--shape: expected N,C,H,W, four positive integers, got {text!r}")
    return tuple(map(int, parts))


if __name__ == "__main__":
    sys.exit(main())
