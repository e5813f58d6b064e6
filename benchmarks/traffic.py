"""What every block moves, counted: ``python -m benchmarks.traffic [--check] [--json]``.

Traffic is in T, one pass over the feature map. Ours is counted under Triton's interpreter, kernel by kernel; eager
PyTorch's by a dispatch mode, operator by operator. Nothing is timed here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch

SHAPE = (2, 64, 28, 28)
DTYPE = torch.float16

# T forward and backward, without and with the shortcut; the mask is a bit per element, T/16 at 16 bits, and is written
# once and read twice. Small tensors are within the allowance.
CEILINGS = {"se": {False: (3.0, 4.0), True: (4.0 + 1 / 16, 5.0 + 2 / 16)}}
ALLOWED = 1.02
SECTORS_ALLOWED = 1.15


@dataclass(frozen=True)
class Row:
    """One block, layout and tail: T moved and launches, forward and backward."""

    block: str
    layout: str
    shortcut: bool
    eager_forward: float
    eager_backward: float
    ours_forward: float | None = None
    ours_backward: float | None = None
    sectors: float | None = None
    launches: tuple[int, int] | None = None
    map_launches: tuple[int, int] | None = None

    def excess(self) -> list[str]:
        """What of this row is over its ceiling."""
        if self.ours_forward is None or self.ours_backward is None or self.sectors is None:
            return []
        what = f"{self.block}, {self.layout}{', shortcut' if self.shortcut else ''}"
        forward, backward = CEILINGS[self.block][self.shortcut]
        found = [
            f"{what}: {name} moves {moved:.3f} T, ceiling {ceiling:.3f} T"
            for name, moved, ceiling in (
                ("forward", self.ours_forward, forward),
                ("backward", self.ours_backward, backward),
            )
            if moved > ceiling * ALLOWED
        ]
        if self.sectors > SECTORS_ALLOWED:
            found.append(f"{what}: sectors are {self.sectors:.3f} of the bytes, ceiling {SECTORS_ALLOWED}")
        return found


def measure(name: str, channels_last: bool, with_shortcut: bool, shape: tuple[int, ...] = SHAPE) -> Row:
    """Count one block, ours (where Triton serves it) and eager; Triton's interpreter must be on."""
    import triton_attn
    from benchmarks.meter import CountOperators, count_kernels

    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    block = triton_attn.create_attention(name, shape[1], dtype=DTYPE)
    x, shortcut, grad = (torch.randn(shape).to(DTYPE).contiguous(memory_format=memory_format) for _ in range(3))
    inputs = [x.requires_grad_()]
    if with_shortcut:
        inputs.append(shortcut.requires_grad_())
    keywords = {"shortcut": shortcut} if with_shortcut else {}
    wanted = [*inputs, *block.parameters()]
    size = x.numel() * x.itemsize

    with triton_attn.use_backend("reference"):
        with CountOperators() as eager_forward:
            y = block(x, **keywords)
        with CountOperators() as eager_backward:
            torch.autograd.grad(y, wanted, grad)
    row = Row(
        block=name,
        layout="channels_last" if channels_last else "contiguous",
        shortcut=with_shortcut,
        eager_forward=eager_forward.moved / size,
        eager_backward=eager_backward.moved / size,
    )
    if triton_attn.explain(block, x)[0].backend != "triton":
        return row
    with count_kernels() as forward:
        y = block(x, **keywords)
    with count_kernels() as backward:
        torch.autograd.grad(y, wanted, grad)
    return replace(
        row,
        ours_forward=forward.total / size,
        ours_backward=backward.total / size,
        sectors=(forward.total_sectors + backward.total_sectors) / (forward.total + backward.total),
        launches=(forward.launches.total(), backward.launches.total()),
        map_launches=(forward.map_launches.total(), backward.map_launches.total()),
    )


def measure_all() -> Iterator[Row]:
    """Every block, in both layouts, without and with the tail of a residual block."""
    import triton_attn

    for name in triton_attn.list_attention():
        for channels_last in (False, True):
            for shortcut in (False, True):
                yield measure(name, channels_last, shortcut)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| block | layout | shortcut + ReLU | forward, T | backward, T | eager forward, T | eager backward, T "
        "| eager / ours | sectors / bytes | launches (of them over the map) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        eager = row.eager_forward + row.eager_backward
        ours = ["no kernel yet", "", "", "", ""]
        if row.ours_forward is not None and row.ours_backward is not None and row.launches and row.map_launches:
            ratio = f"{eager / (row.ours_forward + row.ours_backward):.1f}"
            launches = " + ".join(f"{a} ({b})" for a, b in zip(row.launches, row.map_launches, strict=True))
            ours = [f"{row.ours_forward:.2f}", f"{row.ours_backward:.2f}", ratio, f"{row.sectors:.2f}", launches]
        forward, backward, ratio, sectors, launches = ours
        cells = [row.block, row.layout, "yes" if row.shortcut else "no", forward, backward]
        cells += [f"{row.eager_forward:.1f}", f"{row.eager_backward:.1f}", ratio, sectors, launches]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; with --check, fail where a ceiling is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a block moves more than its ceiling")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton is imported with the first launch, later than this

    rows = list(measure_all())
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(f"Counted at {SHAPE}, {str(DTYPE).removeprefix('torch.')}; torch {torch.__version__}.\n")
        print(table(rows))
    excess = [line for row in rows for line in row.excess()]
    if arguments.check and excess:
        print("\n".join(["", "Over the ceiling:", *excess]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
