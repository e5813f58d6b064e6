"""The runtime of ``runtime/``, in C: compiled once, by the C compiler of the package ``ziglang``, and loaded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).with_name("runtime")
BUILD = Path(__file__).parents[2] / "build" / "execute"
# As the enumeration in runtime.h has them.
KINDS = (
    "out of bounds",
    "misaligned",
    "unwritten shared memory",
    "race in shared memory",
    "race in a warp",
    "race in a program",
    "race between programs",
    "divergent collective",
    "deadlock",
)
SHOWN, LENGTH = 4, 200


@dataclass(frozen=True)
class Finding:
    """A kind of fault, how often one launch made it, and the first few times in words."""

    kind: str
    count: int
    messages: tuple[str, ...]


def obstacle() -> str | None:
    """Why nothing can be executed here, or None: the fibers' switch is in x86-64's assembly."""
    machine = platform.machine()
    return None if sys.platform == "linux" and machine == "x86_64" else f"needs Linux on x86-64, this is {machine}"


@cache
def library() -> ctypes.CDLL:
    """The runtime, compiled where its sources changed."""
    files = sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    path = BUILD / f"runtime-{digest}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-O2",
            "-shared",
            "-fPIC",
            "-fno-sanitize=all",
            "-o",
            str(own),
        ]
        subprocess.run([*command, *map(str, SOURCES.glob("*.c"))], check=True)
        own.replace(path)  # another process may have been as far
    loaded = ctypes.CDLL(str(path))
    loaded.rt_buffer.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    loaded.rt_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 8, ctypes.c_uint32]
    return loaded


def address_of(symbol: str) -> int:
    """Where a function or variable of the runtime lies."""
    return ctypes.cast(getattr(library(), symbol), ctypes.c_void_p).value or 0


def findings() -> tuple[Finding, ...]:
    """What the last launch did that a GPU would punish."""
    counts = (ctypes.c_int * len(KINDS)).in_dll(library(), "counts")
    texts = (ctypes.c_char * LENGTH * SHOWN * len(KINDS)).in_dll(library(), "messages")
    return tuple(
        Finding(kind, count, tuple(bytes(text.value).decode() for text in shown[: min(count, SHOWN)]))
        for kind, count, shown in zip(KINDS, counts, texts, strict=True)
        if count
    )
