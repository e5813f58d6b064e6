"""The state of a run: what is saved comes back to the bit, for other data it is refused, for more epochs it goes on."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from image_folders import make_folder
from torch import nn

from triton_attn.train.config import Config
from triton_attn.train.errors import UserError
from triton_attn.train.optim import make_optimizer, make_schedule
from triton_attn.train.state import State, read_history
from triton_attn.train.tensors import read_tensors, tensor_bytes

Main = Callable[..., tuple[int, str, str]]
ROW = dict.fromkeys(
    ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "images_per_second", "seconds", "time"), 0.5
)
HISTORY = [ROW | {"epoch": 1}, ROW | {"epoch": 2}]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(2, 3, 6, 6))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def step(state: State, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    state.optimizer.zero_grad()
    state.model(torch.randn(4, 3, 6, 6, generator=generator)).square().sum().backward()
    state.optimizer.step()


def made(kind: str, seed: int, scaler: Any = None) -> State:
    model = network(seed)
    return State(model, make_optimizer(Config(optimizer=kind).resolved(), model.parameters()), scaler)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_state_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    one, other = made(kind, 0), made(kind, 1)
    for seed in range(3):
        step(one, seed)
    one.save(tmp_path, HISTORY, processes=2)
    assert other.load(tmp_path) == 2
    assert read_history(tmp_path) == HISTORY
    for state in (one, other):
        step(state, 7)
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        for name, value in one.optimizer.state[p].items():
            assert torch.equal(value, other.optimizer.state[q][name])
            assert value.stride() == other.optimizer.state[q][name].stride(), "the layout is the parameter's"
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == [
        "history.json", "model.safetensors", "optimizer.safetensors", "state.json"
    ]  # fmt: skip


def test_parameters_without_a_gradient_start_fresh(tmp_path: Path) -> None:
    one, other = made("adam", 0), made("adam", 1)
    one.model[0].requires_grad_(False)  # type: ignore[index]
    step(one, 0)
    one.save(tmp_path, HISTORY, processes=1)
    other.load(tmp_path)
    assert len(other.optimizer.state) == len(one.optimizer.state) == 4


def test_the_scale_of_fp16_comes_back(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale(torch.zeros(1))
    state = made("adam", 0, scaler)
    step(state, 0)
    state.save(tmp_path, HISTORY, processes=1)
    fresh = torch.amp.GradScaler("cpu")
    made("adam", 1, fresh).load(tmp_path)
    assert fresh.get_scale() == 512.0


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("step/0.weight", lambda x: x * 0),
        ("step/0.weight", lambda x: x[None]),
        ("exp_avg/0.weight", lambda x: x * float("nan")),
        ("exp_avg/0.weight", lambda x: x.long()),
        ("exp_avg/0.weight", lambda x: x.to(torch.complex64)),
        ("exp_avg/0.weight", lambda x: x[:1]),
        ("exp_avg/0.weight", lambda _: None),
        ("exp_avg/9.weight", lambda _: torch.zeros(1)),
        ("momentum_buffer/0.weight", lambda _: torch.zeros(1)),
    ],
)
def test_optimizer_tensors_are_checked(name: str, spoil: Callable[[Any], Any], tmp_path: Path) -> None:
    state = made("adam", 0)
    step(state, 0)
    state.save(tmp_path, HISTORY, processes=1)
    file = tmp_path / "last" / "optimizer.safetensors"
    tensors, _ = read_tensors(file)
    spoiled = tensors | {name: spoil(tensors.get(name))}
    file.write_bytes(tensor_bytes({key: value for key, value in spoiled.items() if value is not None}))
    with pytest.raises(UserError, match=rf"optimizer\.safetensors: cannot be read \(.*{name}"):
        made("adam", 1).load(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"processes": 0},
        {"processes": "two"},
        {"scaler": {"scale": 0.0, "_growth_tracker": 1}},
        {"scaler": {"scale": 1e400, "_growth_tracker": 1}},
        {"scaler": {"scale": 1.0}},
        {"evil": 1},
    ],
)
def test_the_fields_of_a_state_are_checked(fields: dict[str, Any], tmp_path: Path) -> None:
    state = made("adam", 0)
    state.save(tmp_path, HISTORY, processes=1)
    file = tmp_path / "last" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UserError, match=r"state\.json: cannot be read"):
        state.load(tmp_path)


@pytest.mark.parametrize(
    "history",
    [
        [], {}, 3, None, [3], [{}], [{"epoch": 1}], [ROW | {"epoch": 2}], [ROW | {"epoch": True}], HISTORY[::-1],
        [HISTORY[0] | {"val_accuracy": 2.0}], [HISTORY[0] | {"lr": "fast"}], [HISTORY[0] | {"seconds": float("nan")}],
        [HISTORY[0] | {"evil": 1}], "[" * 100_000,
    ],
)  # fmt: skip
def test_the_history_is_checked(history: Any, tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "history.json").write_text(history if isinstance(history, str) else json.dumps(history))
    with pytest.raises(UserError, match=r"history\.json: cannot be read"):
        read_history(tmp_path)


def test_the_rate_is_a_function_of_the_epoch_alone() -> None:
    config = Config(epochs=6, warmup_epochs=1.0).resolved()
    optimizer = make_optimizer(config, [nn.Parameter(torch.zeros(1))])
    whole = make_schedule(config, optimizer, 10)
    for _ in range(30):
        whole.step()
    rate = optimizer.param_groups[0]["lr"]
    make_schedule(config, optimizer, 10, epochs_done=3)
    assert optimizer.param_groups[0]["lr"] == rate
    # Two processes take five steps for every ten, and end as low.
    halved = make_schedule(config, optimizer, 5, epochs_done=3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=0.05)
    for _ in range(15):
        halved.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_schedule_that_is_made_anew_rises_again_and_ends_at_zero() -> None:
    config = dataclasses.replace(Config(epochs=2, warmup_epochs=1.0).resolved(), epochs=12, schedule_from=2)
    optimizer = make_optimizer(config, [nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, 10, epochs_done=2)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert rates[0] == pytest.approx(1e-3 / 11)
    assert max(rates) == rates[10] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def lrs(output: Path) -> list[float]:
    with open(output / "metrics.csv", newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


def test_a_run_goes_on_for_more_epochs_than_planned(trained: Path, triton_attn_main: Main) -> None:
    status, out, error = triton_attn_main("train", "--output", trained, "--resume", "--epochs", 4)
    assert status == 0, error
    assert "4 epochs from now on: the schedule is made anew behind epoch 2" in out
    stored = yaml.safe_load((trained / "config.yaml").read_text())["options"]
    assert (stored["epochs"], stored["schedule_from"]) == (4, 2)
    rates = lrs(trained)
    assert len(rates) == 4
    # Six steps: one of warm-up (a fifth of two epochs of three), then a cosine.
    assert rates[2] == pytest.approx(1e-3 * (1 + math.cos(math.pi / 5)) / 2)
    assert rates[3] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 4 / 5)) / 2)
    status, out, _ = triton_attn_main("train", "--output", trained, "--resume")
    assert status == 0
    assert "all 4 epochs are done" in out


def test_a_run_that_goes_on_may_be_killed_too(trained: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    whole = Path(shutil.copytree(trained, tmp_path / "whole"))
    assert triton_attn_main("train", "--output", whole, "--resume", "--epochs", 4)[0] == 0
    saved = State.save

    def save_once(self: State, *what: Any, **how: Any) -> None:
        saved(self, *what, **how)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "save", save_once)
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        assert triton_attn_main("train", "--output", trained, "--resume", "--epochs", 4)[0] == 130
    AcceleratorState._reset_state(reset_partial_state=True)
    assert triton_attn_main("train", "--output", trained, "--resume")[0] == 0
    one, other = read_tensors(whole / "last.safetensors")[0], read_tensors(trained / "last.safetensors")[0]
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert lrs(whole) == lrs(trained)


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_suffix(".x"))
    other.rename(one)
    one.with_suffix(".x").rename(other)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: (data / "cat" / "000.png").rename(data / "cat" / "new.png"), "replaced in cat (other names)"),
        (lambda data: shutil.copy(data / "cat" / "000.png", data / "dog" / "001.png"), "replaced in dog (other sizes)"),
        (lambda data: swap(data / "cat" / "003.png", data / "dog" / "003.png"), "cat (other sizes), dog (other sizes)"),
        (lambda data: (data / "cat" / "000.png").unlink(), "train images 23, expected 24"),
        (lambda data: (data / "cat").rename(data / "cow"), "classes cow, dog, expected cat, dog"),
    ],
)
def test_a_run_knows_its_images(
    change: Callable[[Path], object], expected: str, pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    for index, path in enumerate(sorted(pictures.rglob("*.png"))):
        path.write_bytes(path.read_bytes() + b"x" * index)  # behind the end of an image anything may stand
    words = ("--image-size", 16, "--batch-size", 8, "--workers", 0, "--epochs", 1)
    output = tmp_path / "run"
    assert triton_attn_main("train", "--data", pictures, "--output", output, *words)[0] == 0
    change(pictures)
    status, _, error = triton_attn_main("train", "--output", output, "--resume", "--epochs", 2)
    assert status == 2
    assert error.count("\n") == 1
    assert f"--data: {pictures} has changed since the run in {output} began" in error
    assert expected in error


def test_a_configuration_without_digests_is_named(trained: Path, triton_attn_main: Main) -> None:
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    del stored["dataset"]["files"], stored["version"]
    (trained / "config.yaml").write_text(yaml.safe_dump(stored))
    status, _, error = triton_attn_main("train", "--output", trained, "--resume", "--epochs", 3)
    assert status == 2
    assert "does not say what was in the images" in error


@pytest.mark.parametrize(
    ("images", "words"), [(12, ("--batch-size", 1)), (5, ("--batch-size", 3)), (2, ("--batch-size", 64))]
)
def test_a_batch_of_one_is_refused_before_the_folder_is_taken(
    images: int, words: tuple[object, ...], tmp_path: Path, triton_attn_main: Main
) -> None:
    # Of `images` in two classes, 1 in each is held out; 3 of 5 that are left in batches of 3 have no rest.
    data = make_folder(tmp_path / "data", {"cat": images - images // 2, "dog": images // 2 or 1})
    if images == 2:
        data = make_folder(tmp_path / "split" / "train", {"cat": 1, "dog": 1}).parent
        make_folder(data / "val", {"cat": 1})
        words = ("--batch-size", 1)
    status, _, error = triton_attn_main(
        "train", "--data", data, "--output", tmp_path / "run", "--image-size", 32, "--workers", 0, "--epochs", 1, *words
    )
    if words == ("--batch-size", 3):
        assert status == 0, error
        return
    assert status == 2
    assert error.count("\n") == 1
    assert "--batch-size: a batch of one image of 32×32" in error
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_is_enough_at_a_larger_size(tmp_path: Path, triton_attn_main: Main) -> None:
    data = make_folder(tmp_path / "data", {"cat": 2, "dog": 2})
    words = ("--image-size", 64, "--workers", 0, "--epochs", 1, "--batch-size", 1)
    assert triton_attn_main("train", "--data", data, "--output", tmp_path / "run", *words)[0] == 0
