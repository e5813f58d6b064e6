"""Compiling the kernels for GPUs that are not there, and reading what came out.

The launches are the library's own: an op runs on meta tensors, which have shapes and strides but no data, and every
launch is written down in place of being started. So what is compiled is what a GPU would run at those shapes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

# Shared memory that one program may have, in bytes.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
TARGETS = tuple(SHARED_LIMIT)
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, and what its compilation depends on."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__


@dataclass(frozen=True)
class Report:
    """What a kernel became on one target. Bytes, registers per thread, and accesses by width in bytes."""

    target: str
    registers: int
    spilled: int
    shared: int
    loads: tuple[int, ...]
    stores: tuple[int, ...]

    @property
    def widest_load(self) -> int:
        """The widest load from global memory."""
        return max(self.loads, default=0)

    @property
    def widest_store(self) -> int:
        """The widest store to global memory."""
        return max(self.stores, default=0)


def launches_of(run: Callable[[], Any]) -> list[Launch]:
    """The distinct launches that ``run`` makes, none of which is started. Its tensors may be on the meta device."""
    from triton_attn.ops import launch

    seen: dict[Launch, None] = {}

    def write_down(kernel: Any, grid: tuple[int, ...], _: torch.device, **arguments: Any) -> None:
        if 0 not in grid:
            seen.setdefault(specialised(kernel, arguments))

    with mock.patch.object(launch, "start", write_down):
        run()
    return list(seen)


def specialised(kernel: Any, arguments: dict[str, Any]) -> Launch:
    """What Triton makes of a launch's arguments: ones are constants, and multiples of 16 are known as such."""
    unspecialised = set(getattr(kernel, "do_not_specialize", None) or ())
    options = tuple((key, arguments[key]) for key in ("num_warps", "num_stages") if key in arguments)
    signature, constants, divisible = [], [], []
    for parameter in kernel.params:
        name = parameter.name
        value = arguments[name]
        if (
            parameter.is_constexpr
            or value is None
            or (isinstance(value, int) and value == 1 and name not in unspecialised)
        ):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((name, POINTERS[value.dtype]))
            divisible.append(name)  # PyTorch allocates at 16 bytes or more
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % 16 == 0 and name not in unspecialised:
                divisible.append(name)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), options)


@cache
def compiled(launch: Launch, target: str) -> Report:
    """Compile a launch for ``target`` and read its resources and accesses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name, _ in launch.signature]
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    if target.startswith("sm_"):
        gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    else:
        gpu = GPUTarget("hip", target, 64)
    binary = triton.compile(source, target=gpu, options=dict(launch.options))
    if "cubin" in binary.asm:
        return _read_cubin(target, binary.asm["cubin"], binary.metadata.shared)
    return _read_amdgcn(target, binary.asm["amdgcn"], binary.metadata.shared)


def _read_cubin(target: str, cubin: bytes, shared: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _cuobjdump("-res-usage", path)
        code = _cuobjdump("-sass", path)
    registers = int(re.search(r"REG:(\d+)", usage).group(1))  # type: ignore[union-attr]
    local = re.search(r"LOCAL:(\d+)", usage)
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return Report(
        target,
        registers,
        spills + (int(local.group(1)) if local else 0),
        shared,
        _widths(code, r"\b(?:LDG|LDGSTS)\.[\w.]*"),
        _widths(code, r"\bSTG\.[\w.]*"),
    )


def _widths(code: str, instruction: str) -> tuple[int, ...]:
    widths = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2, "256": 32}
    found = []
    for match in re.findall(instruction, code):
        parts = match.split(".")
        found.append(next((widths[part] for part in parts if part in widths), 4))
    return tuple(sorted(found))


def _read_amdgcn(target: str, code: str, shared: int) -> Report:
    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s*(\d+)", code).group(1))  # type: ignore[union-attr]

    widths = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "ubyte": 1, "byte": 1}

    def accesses(kind: str) -> tuple[int, ...]:
        found = re.findall(rf"(?:global|buffer)_{kind}_(dwordx[234]|dword|[us]?short|[us]?byte)", code)
        return tuple(sorted(widths[name.replace("sshort", "short").replace("sbyte", "byte")] for name in found))

    spilled = number("vgpr_spill_count") + number("sgpr_spill_count")
    return Report(target, number("vgpr_count"), spilled, shared, accesses("load"), accesses("store"))


def _cuobjdump(option: str, path: Path) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout
