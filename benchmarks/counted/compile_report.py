"""Every kernel compiled to machine code, and what it became: ``python -m benchmarks.counted.compile_report``.

A training step of every block that has kernels, with the tail of a residual block, at ResNet-50's shapes, for GPUs that
need not be there; without the tail, and inference, in bfloat16 at two of the shapes. Registers, spills, shared memory,
the widest accesses and tensor-core instructions are read from the machine code; the occupancy bound follows from them
(``occupancy.py``). It fails where something spills or does not fit. With ``--ptx`` accesses are read from PTX, which
takes a fraction of the time, and a spill is counted in other units (``ptx.py``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import SITES
from benchmarks.counted.machine_code import (
    SHARED_LIMIT,
    TARGETS,
    Launch,
    Report,
    block_launches,
    compiled,
    promised,
    served_blocks,
)
from benchmarks.counted.ptx import compiled_quickly
from benchmarks.files import RESULTS, markdown, today, versions, write

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Between them these start every kernel. Non-local has others where it keeps its scores, and in float32.
QUICK = (("layer1", "contiguous", "bfloat16"), ("layer4", "channels_last", "bfloat16"))
MORE = {"nonlocal": (("layer2", "channels_last", "bfloat16"), ("stem", "contiguous", "float32"))}
QUICK_TARGETS = ("sm_90",)


@dataclass(frozen=True, order=True)
class Use:
    """Where a launch comes from."""

    block: str
    site: str
    layout: str
    dtype: str


@dataclass(frozen=True, order=True)
class Row:
    """A kernel on one target, and in how many programs (specialisations and configs) it came out just so.

    ``loads`` and ``stores`` are the widest accesses to global memory, in bytes. Without tensors of the map's dtype, or
    rows of it, a kernel is the same in several dtypes or layouts.
    """

    kernel: str
    target: str
    dtype: str
    layout: str
    warps: int
    registers: int
    spilled: int
    shared: int
    occupancy: float
    loads: int
    stores: int
    tensor_cores: int
    blocks: str = ""
    programs: int = 0


def launches(blocks: Iterable[str], targets: Iterable[str], quick: bool) -> dict[tuple[Launch, str], set[Use]]:
    """The distinct launches of these blocks on these targets, and where each comes from."""
    found: dict[tuple[Launch, str], set[Use]] = defaultdict(set)
    for target, name in itertools.product(targets, blocks):
        for site, layout, dtype in cases(name, quick):
            shape = SITES[site]
            batch, channels, height, width = shape
            settings: list[dict[str, Any]] = [{"with_shortcut": True}]
            if name == "se":  # and ECA, whose passes behind a batch norm are the same
                settings.append({"with_shortcut": True, "behind_norm": True})
            if name == "gate":
                signal = (batch, 2 * channels, (height + 1) // 2, (width + 1) // 2)  # a U-Net's deeper map
                settings.append({"with_shortcut": True, "gating": signal})
            if dtype == "bfloat16" and site in ("layer1", "layer4") and not quick:
                # Kernels without the tail or without a backward are less than those with it.
                settings += [{"with_shortcut": False}, {"with_shortcut": True, "training": False}]
            for setting in settings:
                for launch in block_launches(name, shape, DTYPES[dtype], LAYOUTS[layout], target=target, **setting):
                    found[launch, target].add(Use(name, site, layout, dtype))
    return found


def cases(name: str, quick: bool) -> Iterator[tuple[str, str, str]]:
    """Site, layout and dtype."""
    if quick:
        yield from (*QUICK, *MORE.get(name, ()))
    else:
        yield from itertools.product(SITES, LAYOUTS, DTYPES)


def compile_all(
    jobs: Sequence[tuple[Launch, str]], workers: int, read: Callable[[Launch, str], Report] = compiled
) -> list[Report]:
    """The reports of launches on targets, in their order, by so many processes."""
    if workers == 1:
        return [read(*job) for job in jobs]
    context = multiprocessing.get_context("spawn")  # a fork of a process with PyTorch's threads may hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(read, *zip(*jobs, strict=True), chunksize=4))


def rows_of(found: Iterable[tuple[Launch, set[Use], Report]]) -> list[Row]:
    """The table: programs that came out alike are one row."""
    alike: dict[Row, list[Use]] = defaultdict(list)
    programs: Counter[Row] = Counter()
    for launch, uses, report in found:
        layout, dtype = (", ".join(sorted({getattr(use, key) for use in uses})) for key in ("layout", "dtype"))
        row = Row(
            kernel=launch.name,
            target=report.target,
            dtype=dtype,
            layout=layout,
            warps=report.num_warps,
            registers=report.registers,
            spilled=report.spilled,
            shared=report.shared,
            occupancy=round(report.occupancy, 3),
            loads=report.widest_load,
            stores=report.widest_store,
            tensor_cores=report.tensor_cores,
        )
        alike[row] += uses
        programs[row] += 1
    rows = (
        replace(row, blocks=", ".join(sorted({use.block for use in uses})), programs=programs[row])
        for row, uses in alike.items()
    )
    return sorted(rows, key=lambda row: (row.kernel, TARGETS.index(row.target), *astuple(row)))


def may_spill(row: Row) -> bool:
    """Non-local promises no spills in 16 bits on sm_90 and sm_100 alone; its page names the causes of the others."""
    its_promise = row.target in ("sm_90", "sm_100") and "float32" not in row.dtype
    return row.kernel.startswith("non_local") and not its_promise


def failures(rows: Iterable[Row]) -> list[str]:
    """A line for everything that spills, or takes more shared memory than there is."""
    lines = []
    for row in rows:
        what = f"{row.kernel}, {row.target}, {row.dtype}, {row.layout} ({row.blocks})"
        if row.spilled and not may_spill(row) and promised():
            lines.append(f"{what}: spills registers")
        if row.shared > SHARED_LIMIT[row.target]:
            lines.append(f"{what}: {row.shared} bytes of shared memory, {SHARED_LIMIT[row.target]} there are")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """A line for every kernel and target: the worst of its programs."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.kernel, row.target].append(row)
    head = ["kernel", "target", "programs", "registers, up to", "spilled", "shared bytes, up to"]
    head += ["occupancy bound, at least", "widest load, bytes", "widest store, bytes", "tensor-core instructions"]
    return markdown(
        head,
        (
            [
                kernel,
                target,
                sum(row.programs for row in group),
                max(row.registers for row in group),
                sum(row.spilled for row in group),
                max(row.shared for row in group),
                f"{min(row.occupancy for row in group):.0%}",
                _range(row.loads for row in group),
                _range(row.stores for row in group),
                _range(row.tensor_cores for row in group),
            ]
            for (kernel, target), group in groups.items()
        ),
    )


def table(rows: Iterable[Row]) -> str:
    """All rows."""
    head = ["kernel", "target", "dtype", "layout", "warps", "registers", "spilled", "shared bytes", "occupancy bound"]
    head += ["widest load, bytes", "widest store, bytes", "tensor-core instructions", "blocks", "programs"]
    return markdown(head, ([*astuple(row)[:8], f"{row.occupancy:.0%}", *astuple(row)[9:]] for row in rows))


def _range(values: Iterable[int]) -> str:
    low, *rest = sorted(set(values))
    return f"{low} to {rest[-1]}" if rest else str(low)


def as_markdown(rows: Sequence[Row]) -> str:
    """The file that people read."""
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""# The kernels as machine code

Compiled with no GPU at hand: {found}. A training step of every block that has kernels, with the tail of a residual
block, at ResNet-50's shapes (batch 64 at 224²); without the tail, and inference, in bfloat16 at layer1 and layer4.
The occupancy bound is the share of a multiprocessor's warps that registers, shared memory and warps per program let
reside there. Made by `python -m benchmarks.counted.compile_report`.

## The worst of every kernel

{summary(rows)}

## Every program

Programs that came out alike are one line.

{table(rows)}
"""


def as_json(rows: Iterable[Row]) -> str:
    """The same for machines, a row a line."""
    lines = ",\n".join("  " + json.dumps(asdict(row)) for row in rows)
    head = f' "versions": {json.dumps(versions())},\n "date": "{today()}",'
    return f'{{\n{head}\n "rows": [\n{lines}\n ]\n}}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print the summary and write the files; fail where something spills or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted.compile_report", description=__doc__)
    parser.add_argument("--blocks", metavar="A,B", help="only these blocks (those that have kernels)")
    parser.add_argument("--targets", metavar="A,B", help=f"only these of {', '.join(TARGETS)}")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for report.md and report.json")
    parser.add_argument(
        "--quick", action="store_true", help="two shapes, bfloat16, sm_90 alone; writes no files itself"
    )
    parser.add_argument("--ptx", action="store_true", help="without the disassembly")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers: expected at least 1, got {arguments.workers}")
    # Triton is imported with the first launch, later than this; its interpreter compiles nothing.
    os.environ.pop("TRITON_INTERPRET", None)
    served = served_blocks()
    blocks = _chosen(parser, "--blocks", arguments.blocks, served, served)
    targets = _chosen(parser, "--targets", arguments.targets, TARGETS, QUICK_TARGETS if arguments.quick else TARGETS)
    output = arguments.output or (None if arguments.quick else RESULTS / "compile")

    found = launches(blocks, targets, arguments.quick)
    idle = sorted(set(blocks) - {use.block for uses in found.values() for use in uses})
    if idle:
        print(f"{', '.join(idle)}: expected launches, there are none: Triton does not serve it here", file=sys.stderr)
        return 1
    reports = compile_all(list(found), arguments.workers, compiled_quickly if arguments.ptx else compiled)
    rows = rows_of((launch, uses, report) for ((launch, _), uses), report in zip(found.items(), reports, strict=True))
    print(f"{len(found)} programs of {', '.join(blocks)}, on {', '.join(targets)}.\n\n{summary(rows)}")
    if output is not None:
        write(output / "report.md", as_markdown(rows))
        write(output / "report.json", as_json(rows))
        print(f"\nWritten: {output / 'report.md'}, {output / 'report.json'}")
    spilling = sorted({row.kernel for row in rows if row.spilled})
    print(f"\n{sum(bool(row.spilled) for row in rows)} of {len(rows)} kinds spill: {', '.join(spilling) or 'none'}")
    lines = failures(rows)
    if lines:
        print("\n".join(["", "Fails:", *lines]), file=sys.stderr)
    return 1 if lines else 0


def _chosen(
    parser: argparse.ArgumentParser, option: str, text: str | None, known: Sequence[str], default: Sequence[str]
) -> list[str]:
    if not text:
        return list(default)
    unknown = sorted(set(text.split(",")) - set(known))
    if unknown:
        parser.error(f"{option}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
