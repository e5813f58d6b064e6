"""The same report of a launch without its disassembly, which takes NVIDIA's tool longer than the compiler needs.

Registers, spills and shared memory are the machine code's. Accesses and tensor-core instructions are read from PTX,
which the assembler takes over as they are: how many of them there are may change, how wide they are does not. Tests ask
here; the compile report, and with it the guard's baseline, reads the machine code itself.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.counted.machine_code import Launch, Report, compiled, source_of

ACCESS = re.compile(r"\b(ld|st)\.global((?:\.[\w:]+)*)\.[bfsu](\d+)\b")
VECTOR = re.compile(r"\.v(\d+)\b")
# Shared and global address, and how many bytes.
COPY = re.compile(r"\bcp\.async\.c[ag]\.shared(?:::cta)?\.global[^;\[]*\[[^\]]*\],\s*\[[^\]]*\],\s*(0x[0-9a-f]+|\d+)")
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


@cache
def compiled_quickly(launch: Launch, target: str) -> Report:
    """Compile a launch for ``target``; the bytes of ``spilled`` are those of a thread's stack."""
    if not target.startswith("sm_"):
        return compiled(launch, target)  # AMD's compiler leaves its assembly
    binary = binary_of(launch, target)
    loads, stores, tensor_cores = read_ptx(binary.asm["ptx"])
    registers, spilled = _resources(binary.asm["cubin"])
    meta = binary.metadata
    return Report(target, meta.num_warps, registers, spilled, meta.shared, loads, stores, tensor_cores)


def binary_of(launch: Launch, target: str) -> Any:
    """What Triton makes of a launch."""
    import triton

    source, options, gpu = source_of(launch, target)
    return triton.compile(source, target=gpu, options=options)


def read_ptx(ptx: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The widths of global loads and of stores, in bytes, and how many tensor-core instructions there are."""
    widths: dict[str, list[int]] = {"ld": [], "st": []}
    for kind, modifiers, bits in ACCESS.findall(ptx):
        vector = VECTOR.search(modifiers)
        widths[kind].append(int(bits) // 8 * (int(vector[1]) if vector else 1))
    widths["ld"] += [int(size, 0) for size in COPY.findall(ptx)]
    return tuple(sorted(widths["ld"])), tuple(sorted(widths["st"])), len(TENSOR_CORES.findall(ptx))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its local memory."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        said = subprocess.run([str(tool), "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return found["REG"], found["STACK"] + found["LOCAL"]
