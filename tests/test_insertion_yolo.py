"""Attention in ultralytics' networks, where that is installed: through its trainer, its files and its fusing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import triton_attn

pytest.importorskip("ultralytics")
cv2 = pytest.importorskip("cv2")

from ultralytics import YOLO  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402

SITES = {"model.4": "se", "model.6": "eca"}


class Trainer(DetectionTrainer):
    """Builds the network from its YAML, as always, inserts attention into what was built, and then loads weights."""

    def get_model(self, cfg=None, weights=None, verbose=True) -> nn.Module:
        model = super().get_model(cfg, None, verbose)
        triton_attn.insert(model, SITES)
        if weights:
            model.load(weights)
        return model


def inserted(model: nn.Module) -> list[str]:
    return [key for key in model.state_dict() if ".attention." in key]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small images with one thing in the middle of each."""
    root, noise = tmp_path_factory.mktemp("things"), torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for i in range(4):
            image = torch.randint(255, (64, 64, 3), dtype=torch.uint8, generator=noise).numpy()
            assert cv2.imwrite(str(root / "images" / part / f"{i}.png"), image)
            (root / "labels" / part / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n  0: thing\n")
    return root


def options(data: Path, folder: Path) -> dict[str, object]:
    return {
        "data": str(data / "data.yaml"),
        "epochs": 1,
        "imgsz": 64,
        "batch": 2,
        "workers": 0,
        "device": "cpu",
        "project": str(folder),
        "name": "run",
        "exist_ok": True,
        "plots": False,
        "amp": False,
        "verbose": False,
    }


def test_it_survives_training_and_files(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(overrides={"model": "yolov8n.yaml", **options(data, tmp_path)})
    trainer.train()
    keys = inserted(trainer.model)
    assert len(keys) == 5
    assert inserted(trainer.ema.ema) == keys
    assert not torch.equal(trainer.model.state_dict()[keys[2]], torch.zeros_like(trainer.model.state_dict()[keys[2]]))
    again = Trainer(overrides={"model": str(trainer.last), **options(data, tmp_path)})
    again.setup_model()
    kept = torch.load(trainer.last, weights_only=False)["model"].float().state_dict()
    assert all(torch.equal(again.model.state_dict()[key], kept[key]) for key in keys)
    loaded = YOLO(str(trainer.last))
    assert inserted(loaded.model) == keys
    x = torch.rand(1, 3, 64, 64)
    loaded.model.float().eval()
    with torch.no_grad():
        expected = loaded.model(x)[0]
        loaded.model.fuse(verbose=False)  # its convolutions and their batch norms
        torch.testing.assert_close(loaded.model(x)[0], expected, atol=1e-3, rtol=1e-3)
    assert inserted(loaded.model) == keys
    assert sorted(triton_attn.remove(loaded.model)) == ["model.4", "model.6"]


def test_a_network_that_is_built_again_has_none(data: Path, tmp_path: Path) -> None:
    """What the documentation warns of: the trainer builds another network from the YAML."""
    yolo = YOLO("yolov8n.yaml")
    triton_attn.insert(yolo.model, SITES)
    yolo.train(**options(data, tmp_path))
    assert inserted(yolo.model) == []


def test_nothing_changes_at_first() -> None:
    torch.manual_seed(0)
    model = YOLO("yolov8n.yaml").model.eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)[0]
        triton_attn.insert(model, SITES)
        assert torch.equal(model(x)[0], before)
