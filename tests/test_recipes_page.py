"""The code of the README, the recipes and the notebook, run as it stands but for its size."""

from __future__ import annotations

import json
import re
import sys
import types
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import nn

DOCS = Path(__file__).resolve().parents[1] / "docs"
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SMALLER = {  # and nothing is downloaded
    "pretrained=True": "pretrained=False",
    ', weights="IMAGENET1K_V2"': "",
    'weights="IMAGENET1K_V2"': "",
    "seresnet50": "seresnet18",
    "resnet50": "resnet18",
    ".bn3": ".bn2",
    "224": "32",
}


def sections() -> dict[str, str]:
    """The code of every section of the recipes."""
    parts = SECTION.split((DOCS / "recipes.md").read_text())
    return {head: "\n".join(CODE.findall(text)) for head, text in zip(parts[1::2], parts[2::2], strict=True)}


def smaller(code: str) -> str:
    for old, new in SMALLER.items():
        code = code.replace(old, new)
    return code


class TheirTrainer:
    """As ultralytics': it builds its network by itself, gets weights into it, and has ``overrides``."""

    def __init__(self, overrides: dict[str, str]) -> None:
        self.model_name = overrides["model"]

    def get_model(self, cfg: str | None, weights: None, verbose: bool) -> nn.Module:
        assert (cfg, weights, verbose) == (self.model_name, None, True)
        network = nn.Module()
        network.model = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 16, 16, 1) for i in range(7)))
        network.forward = network.model.forward
        return network

    def train(self) -> None:
        trained.append(self.get_model(self.model_name, None, True))


trained: list[nn.Module] = []


@pytest.mark.parametrize("head", sections())
def test_recipes(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = smaller(sections()[head])
    assert code, head
    pytest.importorskip("timm" if "timm" in code else "torch")
    monkeypatch.chdir(tmp_path)
    if head == "YOLO":
        for name in accumulate(("ultralytics", ".models", ".yolo", ".detect")):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["ultralytics.models.yolo.detect"].DetectionTrainer = TheirTrainer  # type: ignore[attr-defined]
    torch.manual_seed(0)
    exec(compile(code, f"recipes.md: {head}", "exec"), {"__name__": "recipe"})
    if head == "YOLO":
        network = trained.pop().model
        assert [type(network[at].attention).__name__ for at in (4, 6)] == ["SEBlock", "ECABlock"]


def test_the_readme() -> None:
    (code,) = CODE.findall((DOCS.parent / "README.md").read_text())
    for name in ("timm", "torchvision"):
        pytest.importorskip(name)
    space: dict[str, object] = {}
    exec(compile(smaller(code), "README.md", "exec"), space)
    assert space["y"].shape == space["x"].shape  # type: ignore[attr-defined]


def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one by one; what they show is committed with them."""
    for name in ("timm", "sklearn", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((DOCS / "first_steps.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in (cells[1], cells[2], cells[3], cells[-1]))
    space: dict[str, object] = {}
    for cell in cells:
        source = "".join(cell["source"]).replace("epochs = 8", "epochs = 2")
        exec(compile(source, "first_steps.ipynb", "exec"), space)
    assert space["right"].float().mean() > 0.2  # type: ignore[attr-defined]
    torch.testing.assert_close(space["rows"].sum((1, 2)), torch.ones(3))  # type: ignore[attr-defined]
    sys.modules["matplotlib.pyplot"].close("all")
