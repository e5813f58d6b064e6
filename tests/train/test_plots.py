"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triton_attn.train.plots import draw_confusion, draw_curves


def row(epoch: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "train_accuracy": 1 - 0.5 / epoch,
        "val_loss": 1.1 / epoch,
        "val_accuracy": 1 - 0.6 / epoch,
        "lr": 1e-3 / epoch,
    }


@pytest.mark.parametrize("epochs", [1, 100])
def test_curves_of_any_length(epochs: int, tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", [row(epoch) for epoch in range(1, epochs + 1)])
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5


@pytest.mark.parametrize("classes", [2, 200])  # with names and without
def test_confusion_of_any_number_of_classes(classes: int, tmp_path: Path) -> None:
    counts = np.eye(classes, dtype=int) * 20
    counts[-1] = 0  # a class without images
    draw_confusion(tmp_path / "c.png", counts, [f"class {i}" for i in range(classes)], "title")
    width, height = Image.open(tmp_path / "c.png").size
    assert 400 < height < 3000
    assert 400 < width < 3000
