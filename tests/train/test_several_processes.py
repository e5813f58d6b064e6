"""Training in two processes, over gloo."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from triton_attn.train.checkpoint import load_model
from triton_attn.train.config import load_config
from triton_attn.train.optim import make_optimizer, make_schedule

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

Main = Callable[..., tuple[int, str, str]]


def torchrun(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )


def options(pictures: Path, output: Path, epochs: int) -> list[object]:
    words: list[object] = ["train", "--data", pictures, "--output", output, "--image-size", 16, "--batch-size", 4]
    return [*words, "--epochs", epochs, "--workers", 0]


def test_two_processes_train_one_network(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = torchrun(Path(__file__).with_name("two_processes.py"), *options(pictures, output, 2))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1, "one process reports"
    assert "2 × cpu" in done.stdout
    with open(output / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)
    # Six held-out images: the two processes count each of them once.
    assert all(abs(right - round(right)) < 1e-4 for right in (6 * float(row["val_accuracy"]) for row in rows))
    assert len(list((output / "tensorboard").iterdir())) == 1
    assert load_model(output)[1].classes == ("cat", "dog")
    # And both end with the same weights.
    sums = [(tmp_path / f"run.{rank}.sum").read_text() for rank in (0, 1)]
    assert sums[0] == sums[1]


def test_killed_and_resumed_they_end_with_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert torchrun("-m", "triton_attn.cli", *options(pictures, whole, 2)).returncode == 0
    script = Path(__file__).with_name("two_processes.py")
    assert torchrun(script, *options(pictures, killed, 2), KILL_AFTER_AN_EPOCH="1").returncode != 0
    done = torchrun("-m", "triton_attn.cli", "train", "--output", killed, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"resumed {killed} after epoch 1") == 1, done.stdout
    one, other = load_file(whole / "last.safetensors"), load_file(killed / "last.safetensors")
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_resumed_by_another_number_of_processes_the_schedule_still_ends_at_zero(
    pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    output = tmp_path / "run"
    assert torchrun("-m", "triton_attn.cli", *options(pictures, output, 2)).returncode == 0
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
    done = torchrun("-m", "triton_attn.cli", "train", "--data", tmp_path / "nowhere")
    assert done.returncode != 0
    assert done.stderr.count("triton-attn: error: --data:") == 1, done.stderr
