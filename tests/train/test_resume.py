"""A run that is killed and resumed ends as one that never was."""

from __future__ import annotations

import csv
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import Command
from safetensors.torch import load_file

EPOCHS = 4
SMALL = ("--image-size", 16, "--batch-size", 8, "--workers", 0, "--epochs", EPOCHS, "--attention", "nonlocal")


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(output: Path) -> list[dict[str, str]]:
    with open(output / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def whole(pictures: Path, tmp_path: Path) -> Path:
    """A run that nothing happened to."""
    output = tmp_path / "whole"
    Command(["train", "--data", pictures, "--output", output, *SMALL], tmp_path / "whole.log").finish()
    return output


def test_killed_at_random_moments_it_ends_with_the_same_bits(pictures: Path, whole: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "killed", tmp_path / "killed.log"
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    start = ["train", "--data", pictures, "--output", output, *SMALL]
    words, kills = start, 0
    for _ in range(3):
        command = Command(words, log)
        deadline = time.monotonic() + 60
        while not (output / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        status = command.wait(draw.uniform(0.2, 3.5))
        if status is None:
            os.kill(command.process.pid or 0, signal.SIGKILL)
            command.process.join()
            kills += 1
        else:
            assert status == 0, log.read_text()
            if kills:
                break
        words = ["train", "--output", output, "--resume"]
    text = Command(words, log).finish()

    assert kills, f"seed {seed}: it ended before it was killed"
    assert same_weights(whole / "last.safetensors", output / "last.safetensors"), f"seed {seed}: {text}"
    assert same_weights(whole / "best.safetensors", output / "best.safetensors"), f"seed {seed}: {text}"
    kept = [column for column in rows(whole)[0] if column not in ("seconds", "images_per_second")]
    assert [[row[column] for column in kept] for row in rows(output)] == [
        [row[column] for column in kept] for row in rows(whole)
    ]
    assert [row["epoch"] for row in rows(output)] == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    left = {path.name for path in output.iterdir()}
    assert {name for name in left if name.startswith(".")} == set(), "temporary files are left"
