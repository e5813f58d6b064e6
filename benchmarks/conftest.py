"""Options of the benchmarks, and the file that a session leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.files import RESULTS

SIZES = ("tiny", "small", "full")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("triton_attn")
    group.addoption("--size", choices=SIZES, help="shapes: full (the default on a GPU), small (on a CPU) or tiny")
    group.addoption("--rounds", type=int, metavar="N", help="times that each provider runs (default 100 on a GPU, 20)")
    group.addoption("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where <device>/blocks.json goes")
