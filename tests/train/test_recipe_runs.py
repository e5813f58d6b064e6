"""Runs by a recipe: what learns and what does not, what is saved, and that they end the same when they are resumed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from triton_attn.train.checkpoint import load_model
from triton_attn.train.state import State

Main = Callable[..., tuple[int, str, str]]
SMALL = ("--image-size", 16, "--batch-size", 8, "--workers", 0, "--epochs", 1)
NETWORK = ("--attention", "se", "--where", "layer4", "--attention-kwargs", "reduction=8")


@pytest.fixture
def train(shared_pictures: Path, tmp_path: Path, triton_attn_main: Main) -> Callable[..., Path]:
    """Train into a folder of this name, by these words; returns the folder."""

    def call(name: str, *words: object) -> Path:
        output = tmp_path / name
        data = ("--data", shared_pictures) if "--resume" not in words else ()
        status, said, error = triton_attn_main("train", *data, "--output", output, *words)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert status == 0, error
        output.with_suffix(".log").write_text(said)
        return output

    return call


def rows(output: Path) -> list[dict[str, str]]:
    with open(output / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_by_a_whole_recipe_is_resumed_to_the_bit(
    train: Callable[..., Path], shared_pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    words = (
        *SMALL, *NETWORK, "--epochs", 3, "--batch-size", 4, "--accumulate", 4, "--ema", 0.6, "--clip-grad", 1.0,
        "--mixup", 0.2, "--cutmix", 1.0, "--label-smoothing", 0.1, "--class-weights", "balanced", "--random-erasing",
        0.25, "--auto-augment", "trivialaugment", "--optimizer", "adamw", "--attention-lr", 0.01, "--early-stop", 2,
        "--grad-checkpointing", "--train-fraction", 0.75, "--eval-image-size", 24, "--crop-fraction", 0.875,
    )  # fmt: skip
    whole = train("whole", *words)
    said = whole.with_suffix(".log").read_text()
    assert "18 images to train on, 6 held out" in said
    assert "label smoothing 0.1" in said.splitlines()[2]
    assert "of the average" in said

    saved = State.save

    def save_once(self: State, *what: object, **how: object) -> None:
        saved(self, *what, **how)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "save", save_once)
        begin = ("train", "--data", shared_pictures, "--output", tmp_path / "killed", *words)
        assert triton_attn_main(*begin)[0] == 130
    AcceleratorState._reset_state(reset_partial_state=True)
    killed = train("killed", "--resume")
    assert "resumed" in killed.with_suffix(".log").read_text()
    names = ["best", "last", "best-ema", "last-ema", "last/model", "last/optimizer", "last/ema"]
    for name in names:
        one, other = (load_file(run / f"{name}.safetensors") for run in (whole, killed))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    kept = [key for key in rows(whole)[0] if key not in ("seconds", "images_per_second")]
    assert [[row[key] for key in kept] for row in rows(whole)] == [[row[key] for key in kept] for row in rows(killed)]
    assert {"ema_loss", "ema_accuracy"} <= set(kept)

    # The average lies beside the weights, with its own accuracy.
    card = load_model(whole / "best-ema.safetensors")[1]
    assert card.val_accuracy == max(float(row["ema_accuracy"]) for row in rows(whole))
    assert (card.image_size, card.eval_image_size, card.crop_fraction) == (16, 24, 0.875)
    last, ema = load_file(whole / "last.safetensors"), load_file(whole / "last-ema.safetensors")
    assert not torch.equal(last["conv1.weight"], ema["conv1.weight"])
    # 18 images, 4 at a time (the last two are left out), 4 times a step: one step an epoch, at the end of it.
    state = load_file(whole / "last" / "optimizer.safetensors")
    assert state["step/conv1.weight"] == len(rows(whole))
    stored = yaml.safe_load((whole / "config.yaml").read_text())
    assert stored["dataset"]["train_images"] == 18
    (whole / "last" / "ema.safetensors").unlink()
    status, _, error = triton_attn_main("train", "--output", whole, "--resume", "--epochs", 9)
    assert status == 2
    assert "last/ema.safetensors: cannot be read (no such file)" in error


def frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if "attention" not in key and not key.startswith("fc.")}


def test_a_frozen_backbone_stays_and_accumulated_steps_are_those_of_larger_batches(
    train: Callable[..., Path],
) -> None:
    base = train("base", *SMALL)
    weights = base / "last.safetensors"
    words = (*SMALL, *NETWORK, "--weights", weights, "--freeze", "backbone", "--optimizer", "sgd", "--epochs", 2)
    one = load_file(train("one", *words) / "last.safetensors")
    before = load_file(weights)
    for key, value in frozen(one).items():
        assert torch.equal(value, before[key]), key
    assert "bn1.running_mean" in frozen(one)
    assert not torch.equal(one["fc.weight"], before["fc.weight"])
    state = load_file(train("four", *words, "--batch-size", 2, "--accumulate", 4) / "last.safetensors")
    for key, value in one.items():
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)
    # They are not what as many small steps end at.
    small = load_file(train("small", *words, "--batch-size", 2) / "last.safetensors")
    assert (small["fc.weight"] - one["fc.weight"]).abs().max() > 1e-3


def test_gradients_are_clipped(train: Callable[..., Path]) -> None:
    base = train("base", *SMALL, "--lr", 1e-9) / "last.safetensors"
    words = (*SMALL, "--batch-size", 24, "--optimizer", "sgd", "--lr", 0.5, "--weights", base, "--warmup-epochs", 0)
    before, moved = load_file(base), []
    for name, clip in (("clipped", ("--clip-grad", 0.01)), ("free", ())):
        after = load_file(train(name, *words, *clip) / "last.safetensors")
        learnt = [key for key in before if "running" not in key and "num_batches" not in key]
        moved.append(sum((after[key] - before[key]).square().sum() for key in learnt) ** 0.5)
    assert moved[0] == pytest.approx(0.5 * 0.01, rel=1e-2), "one step of the rate times the norm"
    assert moved[1] > 10 * moved[0]


def test_a_run_that_stops_early_is_done_until_it_is_longer(train: Callable[..., Path]) -> None:
    train("run", *SMALL, "--epochs", 9, "--lr", 1e-12, "--early-stop", 2)
    run = train("run", "--resume")
    assert len(rows(run)) == 3
    said = run.with_suffix(".log").read_text()
    assert "stopped early: for 2 epochs no held-out accuracy has been above that of epoch 1" in said
    assert "nothing is left to resume" in said
    run = train("run", "--resume", "--epochs", 12)
    assert len(rows(run)) == 5, "two more without a rise"


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(
    channels: int, train: Callable[..., Path], shared_pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    base = train("base", *SMALL, "--attention", "se")
    words = ("--attention", "se", "--weights", base / "last.safetensors", "--in-channels", channels)
    run = train("run", *SMALL, *words)
    model, card = load_model(run)
    assert model.conv1.in_channels == card.in_channels == channels
    status, out, error = triton_attn_main("eval", run, "--data", shared_pictures)
    assert status == 0, error
    assert "top-1" in out
    picture = next(shared_pictures.rglob("*.png"))
    status, _, error = triton_attn_main("show", run, picture, "digits:1", "--output", tmp_path / "sheet.png")
    assert status == 0, error
