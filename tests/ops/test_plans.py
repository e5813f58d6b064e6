"""Plans over Triton's real launcher: the checks of :mod:`tests.ops.on_a_stub_driver`, in a process of their own."""

from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import fresh

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")),
    reason="Triton's launcher is compiled by a C compiler, and there is none",
)
ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("on_a_stub_driver.py")
CHECKS = [
    node.name
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = fresh.module("tests.ops.on_a_stub_driver", cwd=ROOT, CUDA_VISIBLE_DEVICES="")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_over_a_driver_that_does_nothing(check: str, found: dict[str, Any]) -> None:
    assert check in found["checks"]
    assert check not in found["failures"], found["failures"][check]
