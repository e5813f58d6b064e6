"""Training in two processes, over gloo."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

from triton_attn.train.checkpoint import load_model

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
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


def test_a_wrong_option_is_said_once(tmp_path: Path) -> None:
    done = torchrun("-m", "triton_attn.cli", "train", "--data", tmp_path / "nowhere")
    assert done.returncode != 0
    assert done.stderr.count("triton-attn: error: --data:") == 1, done.stderr
