"""In which order a compiled kernel adds up floats: read off the compiler's own form of it, with no GPU.

Inside a program a sum over a tile's axis goes over a thread's own elements first, then over the threads of a warp, then
over warps. How many of each there are along the axis is in the layout of the tile, which the compiler chooses by the
tile's shape and the number of warps. Two configs whose sums are alike in this give the same bits.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from typing import Any

from benchmarks.counted.machine_code import Launch, source_of

REDUCE = re.compile(r'"tt\.reduce"\(.*?\}\) : \((.*?)\) ->', re.DOTALL)
AXIS = re.compile(r"axis = (\d+)")
TENSOR = re.compile(r"tensor<([\dx]+)x\w+, (.*?)>(?:, tensor|$)")
SLICE = re.compile(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>$")


def float_sums(ir: str) -> Counter[tuple[Any, ...]]:
    """The sums of floats in a kernel's TTGIR: along the axis, its length and its share of the layout; how often each.

    Sums of integers are exact in any order, and maxima are the same in any.
    """
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ir, re.MULTILINE))
    found: Counter[tuple[Any, ...]] = Counter()
    for reduce in REDUCE.finditer(ir):
        axis, tensor = AXIS.search(reduce[0]), TENSOR.match(reduce[1])
        if "arith.addf" not in reduce[0]:
            continue
        if axis is None or tensor is None:
            raise ValueError(f"a sum that is not understood: {reduce[0]}")
        length = int(tensor[1].split("x")[int(axis[1])])
        sums = (length, *_along(tensor[2], int(axis[1]), layouts))
        found[sums] += 1
    return found


def _along(layout: str, axis: int, layouts: dict[str, str]) -> tuple[Any, ...]:
    """What of a layout concerns one of its axes."""
    if part := SLICE.match(layout):
        # A tile's layout without one of its axes.
        return _along(part[2], axis + (axis >= int(part[1])), layouts)
    text = layouts.get(layout, layout)
    if text.startswith(("#ttg.blocked", "#blocked")):
        names = ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
        return tuple(_sizes(text, name)[axis] for name in names)
    if "mma" in text.partition("<")[0]:
        version = re.search(r"versionMajor = (\d+)", text)
        return version and version[1], _sizes(text, "instrShape")[axis], _sizes(text, "warpsPerCTA")[axis]
    return (text,)  # of another kind: alike only as a whole


def _sizes(text: str, name: str) -> list[int]:
    found = re.search(rf"{name} = \[([\d, ]+)\]", text)
    if found is None:
        raise ValueError(f"a layout without {name}: {text}")
    return [int(size) for size in found[1].split(",")]


def ir_of(launch: Launch, target: str = "sm_90") -> str:
    """A launch as TTGIR, where every tile has its layout: the compiler's first two stages, which are a third of it."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    source, chosen, gpu = source_of(launch, target)
    backend = make_backend(gpu)
    options = backend.parse_options({**chosen, **source.parse_options()})
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    given = (gpu, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    asked = len(inspect.signature(source.make_ir).parameters)  # Triton 3.4 does not ask for the GPU
    module = source.make_ir(*given[-asked:])
    metadata: dict[str, Any] = {}
    for stage in ("ttir", "ttgir"):
        module = stages[stage](module, metadata)
    return str(module)
