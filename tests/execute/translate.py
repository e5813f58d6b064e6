"""Triton's LLVM IR for NVIDIA, rewritten for a CPU: threads are calls of one function, memory is watched.

What was an intrinsic or inline assembly becomes a call (:mod:`.instructions`). Triton loads from shared memory in plain
LLVM, and from and into global memory by assembly: before the former goes a call that looks at what is read.
"""

from __future__ import annotations

import re
import struct

from .instructions import FUNCTIONS, NotExecutedError, assembly, intrinsic
from .text import arguments_of, size_of, type_of

TRIPLE = "x86_64-unknown-linux-gnu"
LAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
BARRIER = "call void @nv.barrier.cta.sync"
_ASSEMBLY = re.compile(
    r'(?:tail )?call (?P<result>void|\{[^}]*\}|<[^>]*>|\w+) asm (?:sideeffect )?"(?P<template>[^"]*)", "[^"]*"'
    r"\((?P<arguments>.*)\)(?: #\d+)?(?=,|$)"
)
_SHARED_LOAD = re.compile(r"\s*%\S+ = load (.+?), ptr addrspace\(3\) (.+?), align (\d+)")
_WATCHED = re.compile(r" store .*addrspace\(3\)| (load|store) .*addrspace\(1\)| asm ")
_INFINITIES = {
    "+inf": "0x7FF0000000000000",
    "-inf": "0xFFF0000000000000",
    "+qnan": "0x7FF8000000000000",
    "-qnan": "0xFFF8000000000000",
}


def translate(ir: str, kernel: str) -> tuple[str, list[str]]:
    """The IR of ``kernel`` for a CPU, with ``@entry``, which takes a pointer to the arguments, 8 bytes each.

    Returns:
        It, and the arguments' types.

    Raises:
        NotExecutedError: there is an instruction that is not executed here.
    """
    ir = _without_gpu(ir)
    definitions: dict[tuple[str, str, tuple[str, ...]], str] = {}
    lines = []
    for line in ir.split("\n"):
        if load := _SHARED_LOAD.match(line):
            n = len(lines)
            lines.append(f"  %shared{n} = ptrtoint ptr {load[2]} to i64")
            lines.append(f"  call void @rt_load_shared(i64 %shared{n}, i32 {size_of(load[1])}, i32 {load[3]})")
        elif found := _ASSEMBLY.search(line):
            types = tuple(type_of(re.sub(r" addrspace\(\d\)", "", each)) for each in arguments_of(found["arguments"]))
            key = (found["result"], found["template"], types)
            name = definitions.setdefault(key, f"assembly{len(definitions)}")
            call = f"call {found['result']} @{name}({found['arguments']})"
            line = line[: found.start()] + call + line[found.end() :]
        elif _WATCHED.search(line):
            raise NotExecutedError(line.strip())
        lines.append(line)
    ir = re.sub(r" addrspace\(\d+\)", "", "\n".join(lines))
    helpers = [assembly(name, *key) for key, name in definitions.items()]
    helpers += [intrinsic(name) for name in sorted(set(re.findall(r"@llvm\.nvvm\.([\w.]+)\(", ir)))]
    ir = re.sub(r"^declare .*@(llvm\.nvvm\.|__nvvm_reflect).*$", "", ir, flags=re.MULTILINE)
    ir = ir.replace("@llvm.nvvm.", "@nv.")
    if "@__nvvm_reflect" in ir:
        helpers.append("define i32 @__nvvm_reflect(ptr %a) { ret i32 0 }")
    for function in ("@llvm.exp2.f32", "@llvm.fma.f32"):
        if not re.search(rf"^declare .*{re.escape(function)}\(", ir, re.MULTILINE):
            parameters = ", ".join(["float"] * (3 if "fma" in function else 1))
            helpers.append(f"declare float {function}({parameters})")
    for function, type_ in FUNCTIONS.items():
        result, parameters = type_.split(" ", 1)
        helpers.append(f"declare {result} @{function}{parameters}")
    entry, types = _entry(ir, kernel)
    head = f'target triple = "{TRIPLE}"\ntarget datalayout = "{LAYOUT}"\n'
    return "\n".join([head, ir, *helpers, entry]), types


def _without_gpu(ir: str) -> str:
    """Without what only NVIDIA's target or a debugger reads, and with numbers as all versions of LLVM write them."""
    ir = re.sub(r",? !dbg !\d+", "", ir)
    ir = re.sub(r"^(target |!).*$", "", ir, flags=re.MULTILINE)
    ir = re.sub(r"\bf0x([0-9A-F]{8})\b", _as_double, ir)
    # Newer versions write a float by the fewest digits that make it; older ones want all of them.
    ir = re.sub(r"(?<![\w.])-?\d\.\d+e[+-]\d+\b", _from_digits, ir)
    for name, value in _INFINITIES.items():
        ir = ir.replace(name, value)
    # Of zeros of both signs, NVIDIA's maximum is the positive one, whichever comes first.
    ir = re.sub(r"@llvm\.(max|min)num\.", r"@llvm.\1imumnum.", ir)
    return ir.replace("ptx_kernel ", "")


def _from_digits(match: re.Match[str]) -> str:
    (value,) = struct.unpack("<f", struct.pack("<f", float(match[0])))
    return f"0x{struct.pack('>d', value).hex().upper()}"


def _as_double(match: re.Match[str]) -> str:
    (value,) = struct.unpack("<f", bytes.fromhex(match[1])[::-1])
    return f"0x{struct.pack('>d', value).hex().upper()}"


def _entry(ir: str, kernel: str) -> tuple[str, list[str]]:
    head = re.search(rf"define void @{kernel}\((.*)\)[^()]*\{{", ir)
    assert head is not None, kernel
    types = [type_of(each) for each in arguments_of(head[1])]
    lines = ["define void @entry(ptr %arguments) {"]
    for i, type_ in enumerate(types):
        lines.append(f"%p{i} = getelementptr i8, ptr %arguments, i32 {8 * i}")
        lines.append(f"%v{i} = load {type_}, ptr %p{i}")
    values = ", ".join(f"{type_} %v{i}" for i, type_ in enumerate(types))
    return "\n".join([*lines, f"call void @{kernel}({values})", "ret void", "}"]), types


def without_barrier(ir: str, which: int) -> str:
    """The IR with one of its barriers left out, counted from 0."""
    lines = ir.split("\n")
    (place,) = [i for i, line in enumerate(lines) if BARRIER in line][which : which + 1]
    return "\n".join(lines[:place] + lines[place + 1 :])
