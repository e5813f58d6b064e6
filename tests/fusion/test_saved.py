"""Whole models, saved and loaded in fresh processes: with this package, and without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import triton_attn
from tests.fusion.networks import SMALL

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("timm se, bottlenecks", "timm efficientnet", "torchvision mobilenet")

LOAD = """
import sys, torch
if sys.argv[2] == "without":
    sys.modules["triton_attn"] = None  # what an import of a package that is not there comes to
for model, x, y in torch.load(sys.argv[1], weights_only=False):
    assert torch.equal(model(x), y)
    print(sum(type(each).__name__.startswith("Fused") for each in model.modules()))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks with an input and its output, as they are while fused, and afterwards."""
    folder, x = tmp_path_factory.mktemp("saved"), torch.randn(2, 3, 32, 32)
    models = [SMALL[name]().eval() for name in NAMES]
    for name, change in (("fused", triton_attn.fuse), ("unfused", triton_attn.unfuse)):
        for model in models:
            change(model)
        torch.save([(model, x, model(x).detach()) for model in models], folder / name)
    return folder


def load(file: Path, ours: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(file), ours],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_with_our_package(files: Path) -> None:
    done = load(files / "fused", "with")
    assert done.returncode == 0, done.stderr
    assert [int(line) > 0 for line in done.stdout.split()] == [True] * len(NAMES)


def test_without_it_the_error_names_it(files: Path) -> None:
    done = load(files / "fused", "without")
    assert done.returncode != 0
    assert "triton_attn" in done.stderr.splitlines()[-1]


def test_unfused_without_it(files: Path) -> None:
    done = load(files / "unfused", "without")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"] * len(NAMES)
