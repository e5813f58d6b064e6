"""Options of the suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.files import RESULTS

SIZES = ("tiny", "small", "goal", "full")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("triton_attn")
    group.addoption(
        "--size",
        choices=SIZES,
        help="shapes: full (the default on a GPU), goal (what the claims are about), small (on a CPU) or tiny",
    )
    group.addoption("--rounds", type=int, metavar="N", help="times that each provider runs (default: by time)")
    group.addoption("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where <device>/<suite>.json goes")
    group.addoption("--until", type=float, metavar="TIME", help="begin no case after that, as date +%%s has it")
    group.addoption("--keep", action="store_true", help="do not measure again what the file has")
