"""``triton-attn export``: programs that give the network's logits for any number of images, or are not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from triton_attn.train import export
from triton_attn.train.checkpoint import Card, load_model, save_model

Main = Callable[..., tuple[int, str, str]]
CARD = Card("resnet18", "se", ("layer1",), {}, 2, ("cat", "dög"), 16, (0.5,), (0.2,), eval_image_size=24)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "best.safetensors"
    save_model(path, CARD.build().state_dict(), CARD)
    return path


def check(checkpoint: Path, load: Callable[[Path], Callable[[torch.Tensor], torch.Tensor]], suffix: str) -> None:
    model, _ = load_model(checkpoint)
    images = torch.randn(5, 1, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(load(checkpoint.with_suffix(suffix))(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_program_of_pytorch(checkpoint: Path, triton_attn_main: Main) -> None:
    status, out, error = triton_attn_main("export", checkpoint, "--format", "pt2")
    assert status == 0, error
    assert "images (N, 1, 24, 24) to logits (N, 2)" in out
    assert "run on 3 images, its logits are within" in out
    check(checkpoint, export.load_pt2, ".pt2")
    extra = {"triton_attn": ""}
    torch.export.load(checkpoint.with_suffix(".pt2"), extra_files=extra)
    assert json.loads(extra["triton_attn"])["classes"] == ["cat", "dög"]


def test_onnx(checkpoint: Path, triton_attn_main: Main) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `export` is not installed")
    import onnx

    status, out, error = triton_attn_main("export", checkpoint, "--format", "onnx")
    assert status == 0, error
    assert "run on 3 images, its logits are within" in out
    check(checkpoint, export.load_onnx, ".onnx")
    metadata = {each.key: each.value for each in onnx.load(checkpoint.with_suffix(".onnx")).metadata_props}
    assert json.loads(metadata["classes"]) == ["cat", "dög"]
    assert json.loads(metadata["triton_attn"])["eval_image_size"] == 24


def test_a_program_with_other_logits_is_not_written(
    checkpoint: Path, triton_attn_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_model(checkpoint)
    monkeypatch.setattr(export, "write_pt2", lambda *_: None)
    for off, said in ((lambda y: y + 1e-3, "logits are 0.001 from"), (lambda y: y[:1], "logits are inf from")):
        monkeypatch.setattr(export, "load_pt2", lambda _, off=off: lambda images: off(model(images)))
        status, out, error = triton_attn_main("export", checkpoint, "--format", "pt2")
        assert status == 2
        assert said in error
        assert "expected at most 0.0001" in error
        assert out == ""
        assert [path.name for path in checkpoint.parent.iterdir()] == ["best.safetensors"]


def test_what_is_refused(checkpoint: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    for words, expected in [
        ((checkpoint,), "--format"),
        ((tmp_path / "nowhere", "--format", "pt2"), "CHECKPOINT: "),
        (
            (checkpoint, "--format", "pt2", "--output", tmp_path / "a.onnx"),
            "--output: expected the name of a .pt2 file",
        ),
        ((checkpoint, "--format", "pt2", "--output", tmp_path), "--output: expected the name of a .pt2 file"),
    ]:
        status, out, error = triton_attn_main("export", *words)
        assert status == 2
        assert expected in error
        assert out == ""
