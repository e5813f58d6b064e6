"""What every result file has: the versions it was made with, and a name that it gets when it is whole."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from triton_attn.train.atomic import write_text

RESULTS = Path(__file__).parent / "results"


def versions(*more: str) -> dict[str, str]:
    """The versions of Python, PyTorch, Triton, this library and ``more``; "none" for one that is not installed."""
    from triton_attn.version import __version__

    found = {"triton_attn": __version__, "python": platform.python_version()}
    for name in ("torch", "triton", *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
