"""Plans over Triton's real launcher: the checks of :mod:`tests.ops.on_a_stub_driver`, in a process of their own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests import fresh

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")),
    reason="Triton's launcher is compiled by a C compiler, and there is none",
)
ROOT = Path(__file__).resolve().parents[2]


def test_over_a_driver_that_does_nothing() -> None:
    """All checks at once: the process takes longer to begin than they do."""
    done = fresh.module("tests.ops.on_a_stub_driver", cwd=ROOT, CUDA_VISIBLE_DEVICES="")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["checks"]
    assert not found["failures"], "\n".join(f"{name}: {why}" for name, why in found["failures"].items())
