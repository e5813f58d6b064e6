"""Whatever lies in a folder of a run: nothing of it is executed, waited for or written through."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

Main = Callable[..., tuple[int, str, str]]

PICKLED = (
    "custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "sampler.bin", "random_states_0.pkl", "scaler.pt",
    "model.bin", "pytorch_model.bin", "optimizer.pkl", "state.pkl",
)  # fmt: skip
STATE = ("last/history.json", "last/model.safetensors", "last/optimizer.safetensors", "last/state.json")
READ = ("best.safetensors", "config.yaml")
WRITTEN = ("last.safetensors", "metrics.csv", "curves.png", "tensorboard/events.out.tfevents.triton_attn")
PLACES = ("link", "link to itself", "FIFO", "folder")
KINDS = ("truncated", "empty", "random", "pickle", "endless", *PLACES)


class Execute:
    """Pickled, this is a command that the reader runs."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def run(_trained: Path, tmp_path: Path) -> Path:
    """A finished run; its files are shared with other tests, since nothing is ever written into one that is there."""
    return Path(shutil.copytree(_trained, tmp_path / "run", copy_function=os.link))


def attack(file: Path, kind: str, canary: Path) -> None:
    whole = file.read_bytes()
    file.unlink()
    if kind == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "random":
        file.write_bytes(random.Random(0).randbytes(10_000))
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(Execute(canary)))
    elif kind == "link":
        precious = canary.with_name("precious")
        precious.write_text("kept")
        file.symlink_to(precious)
    elif kind == "link to itself":
        file.symlink_to(file)
    elif kind == "FIFO":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        with open(file, "wb") as opened:
            opened.truncate(2**40)  # of zeros, which take no room


def survives(main: Main, canary: Path, *words: object) -> int:
    """Call the command line: nothing is executed or overwritten, and what it says is at most one line."""
    status, _, error = main(*words)
    assert status in (0, 2), error
    assert error.count("\n") == (1 if status else 0), error
    assert error.startswith("triton-attn: error: ") or not error
    assert not canary.exists(), "it was executed"
    precious = canary.with_name("precious")
    assert not precious.exists() or precious.read_text() == "kept"
    return status


def test_the_pickle_would_be_executed(canary: Path) -> None:
    pickle.loads(pickle.dumps(Execute(canary)))
    assert canary.exists()


def test_every_file_of_a_run_is_attacked(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert files == {*STATE, *READ, *WRITTEN}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STATE)
def test_state_that_is_attacked_is_refused(
    name: str, kind: str, run: Path, canary: Path, triton_attn_main: Main
) -> None:
    attack(run / name, kind, canary)
    before, config = sorted(run.rglob("*")), (run / "config.yaml").read_text()
    assert survives(triton_attn_main, canary, "train", "--output", run, "--resume", "--epochs", 3) == 2
    assert sorted(run.rglob("*")) == before
    assert (run / "config.yaml").read_text() == config, "the run is as long as it was"


# What is written alone is met at its place: what was in it before is not looked at.
@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", WRITTEN)
def test_files_that_are_written_are_attacked(
    name: str, kind: str, run: Path, canary: Path, triton_attn_main: Main
) -> None:
    attack(run / name, kind, canary)
    survives(triton_attn_main, canary, "train", "--output", run, "--resume")


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_that_is_attacked_is_refused(
    kind: str, run: Path, canary: Path, triton_attn_main: Main
) -> None:
    attack(run / "config.yaml", kind, canary)
    assert survives(triton_attn_main, canary, "train", "--output", run, "--resume") == 2
    assert survives(triton_attn_main, canary, "eval", run, "--output", run / "a.png") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_attacked(kind: str, run: Path, canary: Path, triton_attn_main: Main) -> None:
    attack(run / "best.safetensors", kind, canary)
    weights = run / "best.safetensors"
    assert survives(triton_attn_main, canary, "eval", weights, "--output", run / "confusion.png") == 2
    assert survives(triton_attn_main, canary, "show", weights, "digits:1", "--output", run / "sheet.png") == 2


@pytest.mark.parametrize("name", ["last", "tensorboard"])
@pytest.mark.parametrize("kind", ["link", "file", "FIFO"])
def test_folders_that_are_attacked(name: str, kind: str, run: Path, canary: Path, triton_attn_main: Main) -> None:
    shutil.rmtree(run / name)
    precious = canary.with_name("precious folder")
    precious.mkdir()
    (precious / "x").write_text("kept")
    if kind == "link":
        (run / name).symlink_to(precious, target_is_directory=True)
    elif kind == "file":
        (run / name).write_text("")
    else:
        os.mkfifo(run / name)
    survives(triton_attn_main, canary, "train", "--output", run, "--resume")
    assert (precious / "x").read_text() == "kept"


def test_pickles_beside_the_state_are_not_read(
    run: Path, canary: Path, triton_attn_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (run, run / "last"):
        for name in PICKLED:
            (folder / name).write_bytes(pickle.dumps(Execute(canary)))

    def never(*_: object, **__: object) -> NoReturn:
        raise AssertionError("something is unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, never)
    assert survives(triton_attn_main, canary, "train", "--output", run, "--resume", "--epochs", 3) == 0
    assert survives(triton_attn_main, canary, "eval", run) == 0
    assert survives(triton_attn_main, canary, "show", run, "digits:1", "--output", run / "sheet.png") == 0


def test_the_state_of_an_earlier_version_is_named(run: Path, canary: Path, triton_attn_main: Main) -> None:
    for name in ("optimizer.safetensors", "state.json"):
        (run / "last" / name).unlink()
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl"):
        (run / "last" / name).write_bytes(pickle.dumps(Execute(canary)))
    status, _, error = triton_attn_main("train", "--output", run, "--resume", "--epochs", 3)
    assert status == 2
    assert "an earlier version of triton_attn wrote optimizer.bin" in error
    assert "--weights" in error
    assert not canary.exists()
