"""Whole models, saved and loaded in fresh processes: with this package, and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import triton_attn
from tests import fresh
from tests.fusion.networks import SMALL

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("timm se, bottlenecks", "timm efficientnet", "torchvision mobilenet")

LOAD = """
import sys, torch

def load(name):
    for model, x, y in torch.load(sys.argv[1] + "/" + name, weights_only=False):
        assert torch.equal(model(x), y)
        yield sum(type(each).__name__.startswith("Fused") for each in model.modules())

sys.modules["triton_attn"] = None  # what an import of a package that is not there comes to
print(*load("unfused"))
try:
    print(*load("fused"))
except ModuleNotFoundError as error:
    print(error)
del sys.modules["triton_attn"]
print(*load("fused"))
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


def test_in_a_fresh_process(files: Path) -> None:
    """Unfused without our package; fused without it, where the error names it; and with it."""
    unfused, error, fused = fresh.python(LOAD, str(files), cwd=ROOT).stdout.splitlines()
    assert unfused.split() == ["0"] * len(NAMES)
    assert "triton_attn" in error
    assert [int(count) > 0 for count in fused.split()] == [True] * len(NAMES)
