"""Result files: where they lie, what heads them, how they are read and written, and quartiles as they have them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import torch

from triton_attn import backend, info
from triton_attn.files import write_text
from triton_attn.info import test_device as device

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LATE = "the time limit is spent"


class ResultError(ValueError):
    """A result file that cannot be read; the message names it."""


def load(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ResultError: it cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: expected a result file in JSON ({error})") from error
    if not isinstance(found, dict):
        raise ResultError(f"{path}: expected a result file, a JSON object, got a {type(found).__name__}")
    return found


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def versions(*more: str) -> dict[str, str]:
    """The versions of this library, Python, PyTorch and Triton, and of ``more`` that ``triton-attn info`` knows."""
    found = info.versions()
    return {name: found[name] for name in ("triton_attn", "Python", "torch", "triton", *more)}


@cache
def code(*folders: str) -> str:
    """Some digits that are others where any Python file in these folders is another: whose numbers these are."""
    files = sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))
    text = "\n".join(f"{path}\n{(ROOT / path).read_text(encoding='utf-8')}" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def markdown(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table."""
    heads = list(head)
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def today() -> str:
    """The date in UTC."""
    return datetime.now(timezone.utc).date().isoformat()


def quartiles(samples: list[float]) -> dict[str, float]:
    """The median of some samples, and the quartiles around it."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {"median": median, "q1": low, "q3": high}


def on_gpu() -> bool:
    """Whether everything runs on a GPU: where there is one, but Triton's interpreter runs on the CPU."""
    return device().type == "cuda"


def device_name() -> str:
    """The GPU, or the CPU's name and threads."""
    if on_gpu():
        return torch.cuda.get_device_name()
    if backend.interpreting():
        return "Triton's interpreter"
    said = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", said.read_text() if said.exists() else "", re.MULTILINE)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def slug() -> str:
    """The device's folder among the results."""
    if on_gpu():
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return "interpreter" if backend.interpreting() else "cpu"
