"""``triton-attn train``: what it writes, what it refuses, and what it does when the loss is no number."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from image_folders import make_folder
from PIL import Image
from safetensors.torch import load_file
from small_networks import WHOLE_CURVES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import triton_attn
from triton_attn.train import plots
from triton_attn.train.checkpoint import load_model

Main = Callable[..., tuple[int, str, str]]
SMALL = ("--image-size", 16, "--batch-size", 8, "--workers", 0)


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """What would show that something was written."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_what_a_run_leaves(trained: Path, shared_pictures: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
        "curves.png",
        "best.safetensors",
        "last.safetensors",
        "last",
    }
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["options"]["data"] == str(shared_pictures)
    assert config["options"]["attention_kwargs"] == {"reduction": 8}
    files = config["dataset"].pop("files")
    assert config["dataset"] == {"train_images": 24, "val_images": 6, "classes": ["cat", "dog"]}
    assert list(files) == ["cat", "dog"]
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]

    with open(trained / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["lr"]) > float(rows[1]["lr"]) > 0
    assert all(float(row["images_per_second"]) > 0 for row in rows)

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert [(event.step, round(event.value, 5)) for event in events.Scalars("val/loss")] == [
        (int(row["epoch"]), round(float(row["val_loss"]), 5)) for row in rows
    ]
    assert Image.open(trained / "curves.png").format == "PNG"

    model, card = load_model(trained / "last.safetensors")
    assert (card.model, card.attention, card.where, card.epoch) == ("resnet18", "se", ("layer4",), 2)
    assert (card.classes, card.image_size, card.mean) == (("cat", "dog"), 16, (0.485, 0.456, 0.406))
    assert card.val_accuracy == float(rows[1]["val_accuracy"])
    assert isinstance(model.sites()["layer4"], triton_attn.SEBlock)
    state = load_file(trained / "last" / "model.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_run_is_not_overwritten(trained: Path, triton_attn_main: Main) -> None:
    before = contents(trained)
    status, _, error = triton_attn_main("train", "--output", trained)
    assert status == 2
    assert f"--output: {trained} already holds a run" in error
    assert "--resume" in error
    assert contents(trained) == before


def test_resuming_a_finished_run_is_no_error(trained: Path, triton_attn_main: Main) -> None:
    before = load_file(trained / "last.safetensors")
    (trained / "metrics.csv").unlink()  # as after a kill behind the last state
    status, out, _ = triton_attn_main("train", "--output", trained, "--resume")
    assert status == 0
    assert "all 2 epochs are done, nothing is left to resume" in out
    assert all(torch.equal(value, before[key]) for key, value in load_file(trained / "last.safetensors").items())
    assert (trained / "metrics.csv").read_text().count("\n") == 3
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [1, 2]


def test_resume_takes_the_stored_options(
    trained: Path, shared_pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    for words, expected in [
        (("--lr", 0.1), "--lr: 0.1 was given, but the run in"),
        (("--attention", "nonlocal"), "--attention: nonlocal was given"),
        (("--epochs", 1), "--epochs: 1 was given"),
        (("--data", "digits"), "--data: digits was given"),
    ]:
        status, _, error = triton_attn_main("train", "--output", trained, "--resume", *words)
        assert status == 2
        assert expected in error
    same = ("--lr", 0.001, "--data", shared_pictures, "--workers", 1, "--where", "layer4")
    assert triton_attn_main("train", "--output", trained, "--resume", *same)[0] == 0
    status, _, error = triton_attn_main("train", "--output", tmp_path / "none", "--resume")
    assert status == 2
    assert "none holds no run (no config.yaml)" in error
    stored = trained / "config.yaml"
    stored.write_text(stored.read_text().replace("train_images: 24", "train_images: 25"))
    status, _, error = triton_attn_main("train", "--output", trained, "--resume")
    assert status == 2
    assert "has changed since the run in" in error
    assert "train images 24, expected 25" in error


def test_a_damaged_state_is_named(trained: Path, triton_attn_main: Main) -> None:
    stored = trained / "config.yaml"
    stored.write_text(stored.read_text().replace("epochs: 2\n", "epochs: 3\n"))
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "history.json"):
        file = trained / "last" / name
        whole = file.read_bytes()
        for keep in (None, len(whole) // 2):
            file.unlink()
            if keep is not None:
                file.write_bytes(whole[:keep])
            before = contents(trained)
            status, _, error = triton_attn_main("train", "--output", trained, "--resume")
            assert status == 2
            assert f"{trained}/last" in error
            assert "cannot be read" in error
            assert error.count("\n") == 1
            assert contents(trained) == before
            file.write_bytes(whole)


def test_weights_for_other_classes_get_a_new_last_layer(trained: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    three = make_folder(tmp_path / "three", {"a": 5, "b": 5, "c": 5})
    words = ("--attention", "se", "--where", "layer4", "--attention-kwargs", "reduction=8", "--lr", 1e-12)
    status, out, error = triton_attn_main(
        "train", "--data", three, "--output", tmp_path / "new", "--epochs", 1, *SMALL, *words,
        "--weights", trained / "last.safetensors",
    )  # fmt: skip
    assert status == 0, error
    assert "they are for 2 classes and the data have 3, so the last layer starts fresh" in out
    old, new = load_model(trained / "last.safetensors")[0], load_model(tmp_path / "new")[0]
    assert torch.allclose(old.conv1.weight, new.conv1.weight, atol=1e-6)
    assert new.fc.weight.shape == (3, 128)


@pytest.mark.parametrize(("bad_call", "kept"), [(2, "no epoch was completed"), (5, "keeps the state after epoch 1")])
def test_a_loss_that_is_no_number_stops_the_run(
    bad_call: int, kept: str, pictures: Path, tmp_path: Path, triton_attn_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = 0, F.cross_entropy

    def sometimes_nan(logits: torch.Tensor, labels: torch.Tensor, **how: str) -> torch.Tensor:
        nonlocal calls
        calls += logits.requires_grad
        return real(logits, labels, **how) * (float("nan") if calls == bad_call else 1)

    monkeypatch.setattr(F, "cross_entropy", sometimes_nan)
    output = tmp_path / "run"
    status, _, error = triton_attn_main("train", "--data", pictures, "--output", output, "--epochs", 2, *SMALL)
    assert status == 2
    epoch, step = (bad_call - 1) // 3 + 1, (bad_call - 1) % 3 + 1
    assert f"epoch {epoch}/2, step {step}: the training loss is nan" in error
    assert kept in error
    if epoch == 2:
        state = load_model(output / "last.safetensors")[0].state_dict()
        assert all(value.isfinite().all() for value in state.values())
        assert (output / "metrics.csv").read_text().count("\n") == 2
        monkeypatch.undo()
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        assert triton_attn_main("train", "--output", output, "--resume")[0] == 0


def test_a_held_out_loss_that_is_no_number_stops_the_run(
    pictures: Path, tmp_path: Path, triton_attn_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = F.cross_entropy

    def nan_when_held_out(logits: torch.Tensor, labels: torch.Tensor, **how: str) -> torch.Tensor:
        return real(logits, labels, **how) * (1 if logits.requires_grad else float("nan"))

    monkeypatch.setattr(F, "cross_entropy", nan_when_held_out)
    output = tmp_path / "run"
    status, _, error = triton_attn_main("train", "--data", pictures, "--output", output, "--epochs", 2, *SMALL)
    assert status == 2
    assert "epoch 1/2, step 3: the held-out loss is nan" in error
    assert not (output / "last.safetensors").exists()


def test_broken_data_leaves_no_folder(pictures: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    (pictures / "cat" / "000.png").write_text("no picture")
    status, _, error = triton_attn_main("train", "--data", pictures, "--output", tmp_path / "run", *SMALL)
    assert status == 2
    assert "cat/000.png (not an image)" in error
    assert not (tmp_path / "run").exists()


def test_digits(tmp_path: Path, triton_attn_main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw_curves", WHOLE_CURVES)
    words = ("--epochs", 1, "--image-size", 8, "--val-fraction", 0.9, "--optimizer", "adamw")
    status, _, error = triton_attn_main("train", "--output", tmp_path / "run", *words)
    assert status == 0, error
    assert load_model(tmp_path / "run")[1].classes == tuple("0123456789")
    assert Image.open(tmp_path / "run" / "curves.png").width > 1000


def test_in_bf16(shared_pictures: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    # Of 32×32: on maps of 2×2, the gradient of a convolution from 64 to 128 channels in bf16 is NaN now and then on a
    # CPU with AMX, by what was in the memory before (PyTorch 2.14.1).
    words = ("--data", shared_pictures, "--epochs", 1, "--amp", "bf16", *SMALL, "--image-size", 32)
    status, out, error = triton_attn_main("train", "--output", tmp_path / "run", *words)
    assert status == 0, error
    assert "mixed precision: bf16" in out
    model, _ = load_model(tmp_path / "run")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
