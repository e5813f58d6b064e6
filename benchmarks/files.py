"""What every result file has: the versions it was made with, and a name that it gets when it is whole."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from triton_attn import info
from triton_attn.files import write_text

RESULTS = Path(__file__).parent / "results"


def versions(*more: str) -> dict[str, str]:
    """The versions of this library, Python, PyTorch and Triton, and of ``more`` that ``triton-attn info`` knows."""
    found = info.versions()
    return {name: found[name] for name in ("triton_attn", "Python", "torch", "triton", *more)}


def today() -> str:
    """The date in UTC, for files that have one for all of them."""
    return datetime.now(timezone.utc).date().isoformat()


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
