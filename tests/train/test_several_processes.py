"""Training in two processes, over gloo: started as torchrun starts them, but without its seconds of imports."""

from __future__ import annotations

import csv
import math
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import Command, be_one_of, die_after_an_epoch, free_port
from safetensors.torch import load_file

from triton_attn.train.checkpoint import load_model
from triton_attn.train.config import load_config
from triton_attn.train.optim import make_optimizer, make_schedule

Main = Callable[..., tuple[int, str, str]]


def two(folder: Path, *words: object, then: Callable[[], object] | None = None) -> tuple[list[int | None], str]:
    """Two processes of one command line: their exit statuses, and what they say."""
    port, log = free_port(), folder / "two.log"
    log.unlink(missing_ok=True)
    commands = [Command(words, log, partial(be_one_of, rank, 2, port, then)) for rank in (0, 1)]
    return [command.wait() for command in commands], log.read_text()


def options(pictures: Path, output: Path, epochs: int) -> list[object]:
    words: list[object] = ["train", "--data", pictures, "--output", output, "--image-size", 16, "--batch-size", 4]
    return [*words, "--epochs", epochs, "--workers", 0]


@pytest.fixture(scope="module")
def whole(shared_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs; what was said lies beside it."""
    output = tmp_path_factory.mktemp("two") / "run"
    status, said = two(output.parent, *options(shared_pictures, output, 2))
    assert status == [0, 0], said
    return output


def test_two_processes_train_one_network(whole: Path) -> None:
    said = (whole.parent / "two.log").read_text()
    assert said.count("epoch 2/2") == 1, "one process reports"
    assert "2 × cpu" in said
    with open(whole / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)
    # Six held-out images: the two processes count each of them once.
    assert all(abs(right - round(right)) < 1e-4 for right in (6 * float(row["val_accuracy"]) for row in rows))
    assert len(list((whole / "tensorboard").iterdir())) == 1
    assert load_model(whole)[1].classes == ("cat", "dog")
    # And both end with the same weights.
    sums = [(whole.parent / f"run.{rank}.sum").read_text() for rank in (0, 1)]
    assert sums[0] == sums[1]


def test_killed_and_resumed_they_end_with_the_same_bits(whole: Path, shared_pictures: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    status, said = two(tmp_path, *options(shared_pictures, killed, 2), then=die_after_an_epoch)
    assert status[0] == -signal.SIGKILL, said
    status, said = two(tmp_path, "train", "--output", killed, "--resume")
    assert status == [0, 0], said
    assert said.count(f"resumed {killed} after epoch 1") == 1, said
    one, other = load_file(whole / "last.safetensors"), load_file(killed / "last.safetensors")
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_resumed_by_another_number_of_processes_the_schedule_still_ends_at_zero(
    whole: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    stored = output / "config.yaml"
    stored.write_text(stored.read_text().replace("epochs: 2\n", "epochs: 4\n"))
    status, out, error = triton_attn_main("train", "--output", output, "--resume")
    assert status == 0, error
    assert "1 instead of 2 processes: a step is of 4 images, not of 8" in out
    config, _ = load_config(output)
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, 6)  # 24 images, 4 at a time
    with open(output / "metrics.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[2:] == [schedule.rate(17), schedule.rate(23)]
    assert rates[3] < 0.02 * config.lr


def test_a_wrong_option_is_said_once(tmp_path: Path) -> None:
    status, said = two(tmp_path, "train", "--data", tmp_path / "nowhere", "--output", tmp_path / "run")
    assert status == [2, 2]
    assert said.count("triton-attn: error: --data:") == 1, said
