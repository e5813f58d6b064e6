"""A run that is killed and resumed ends as one that never was."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
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


def history(output: Path) -> list[dict[str, float]]:
    """The epochs whose state is saved; none while the state is being swapped."""
    try:
        return json.loads((output / "last" / "history.json").read_text())
    except OSError:
        return []


def kill_after_a_while(command: Command, output: Path, draw: random.Random) -> bool:
    """Wait for the end of an epoch, and kill somewhere in the time that the next one takes; False if it was done."""
    before = len(history(output))
    while len(history(output)) <= before and command.wait(0.01) is None:
        pass
    done = history(output)
    if command.wait(draw.uniform(0, 1.3 * done[-1]["seconds"]) if done else 0.1) is None:
        os.kill(command.process.pid or 0, signal.SIGKILL)
        command.process.join()
    return command.process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(shared_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole") / "run"
    Command(["train", "--data", shared_pictures, "--output", output, *SMALL], output.with_suffix(".log")).finish()
    return output


def test_killed_at_random_moments_it_ends_with_the_same_bits(
    shared_pictures: Path, whole: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "killed", tmp_path / "killed.log"
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    begin = ["train", "--data", shared_pictures, "--output", output, *SMALL]
    resume = ["train", "--output", output, "--resume"]
    assert kill_after_a_while(Command(begin, log), output, draw)
    kill_after_a_while(Command(resume, log), output, draw)  # may be done just before it is killed
    text = Command(resume, log).finish()

    assert f"resumed {output} after epoch" in text, text
    for name in ("last.safetensors", "best.safetensors"):
        assert same_weights(whole / name, output / name), f"{name}, seed {seed}: {text}"
    kept = [column for column in rows(whole)[0] if column not in ("seconds", "images_per_second")]
    assert [[row[column] for column in kept] for row in rows(output)] == [
        [row[column] for column in kept] for row in rows(whole)
    ]
    assert [row["epoch"] for row in rows(output)] == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    assert not [path for path in output.iterdir() if path.name.startswith(".")], "temporary files are left"


def test_killed_before_the_first_state_it_begins_again(shared_pictures: Path, whole: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "killed", tmp_path / "killed.log"
    command = Command(["train", "--data", shared_pictures, "--output", output, *SMALL], log)
    while not (output / "config.yaml").exists() and command.wait(0.01) is None:
        pass
    os.kill(command.process.pid or 0, signal.SIGKILL)
    command.process.join()
    assert not history(output)
    Command(["train", "--output", output, "--resume"], log).finish()
    assert same_weights(whole / "last.safetensors", output / "last.safetensors")
