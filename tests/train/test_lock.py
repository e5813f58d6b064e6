"""One run in a folder at a time."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Command

from triton_attn.train.errors import UserError
from triton_attn.train.lock import FILE, locked

Main = Callable[..., tuple[int, str, str]]
ENDLESS = ("--image-size", 16, "--batch-size", 8, "--epochs", 10_000)


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match="another process is training in"),
        locked(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "left"])
def test_what_lies_where_the_lock_will_be(kind: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    folder = tmp_path / "run"
    folder.mkdir()
    make: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(tmp_path / "precious"),
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "left": lambda path: path.write_text("by a process that was killed"),
    }
    make[kind](folder / FILE)
    refused = pytest.raises(UserError, match="cannot be locked")
    with refused if kind in ("link", "folder") else contextlib.nullcontext(), locked(folder):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_run_is_refused_until_the_first_is_killed(
    workers: int, shared_pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    output = tmp_path / "run"
    words = ["train", "--data", shared_pictures, "--output", output, "--workers", workers, *ENDLESS]
    first = Command(words, tmp_path / "first.log")
    while not (output / "last" / "state.json").exists() and first.wait(0.05) is None:
        pass
    before = (output / "config.yaml").stat().st_mtime_ns
    for again in (["train", "--output", output, "--resume"], words):
        status, out, error = triton_attn_main(*again)
        assert status == 2
        assert error.count("\n") == 1
        assert f"--output: another process is training in {output}" in error or "already holds a run" in error
        assert out == ""
    assert (output / "config.yaml").stat().st_mtime_ns == before
    assert first.process.is_alive(), first.log.read_text()
    os.kill(first.process.pid or 0, signal.SIGKILL)
    first.process.join()
    # Its workers may live on for a while: they must not hold the folder.
    with locked(output):
        pass


def test_of_two_runs_that_begin_at_once_one_is_refused(shared_pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = ["train", "--data", shared_pictures, "--output", output, "--image-size", 16, "--batch-size", 8]
    commands = [Command([*words, "--epochs", 1, "--workers", 0], tmp_path / f"{index}.log") for index in range(2)]
    assert sorted(command.wait() or 0 for command in commands) == [0, 2]
    (refused,) = [command.log.read_text() for command in commands if command.process.exitcode]
    assert refused.count("triton-attn: error:") == 1
    assert "another process is training in" in refused or "already holds a run" in refused
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_many_may_draw_one_picture(shared_pictures: Path, tmp_path: Path) -> None:
    from triton_attn.train.checkpoint import Card, save_model

    card = Card("resnet18", "se", ("stem",), {}, 2, ("cat", "dog"), 16)
    checkpoint = tmp_path / "best.safetensors"
    save_model(checkpoint, card.build().state_dict(), card)
    pictures = tmp_path / "new" / "pictures"
    look = ["eval", checkpoint, "--data", shared_pictures, "--output", pictures / "same.png"]
    show = ["show", checkpoint, "digits:1", "--output", tmp_path / "sheet.png"]
    commands = [Command(words, tmp_path / f"{index}.log") for index, words in enumerate([look, show] * 2)]
    for command in commands:
        command.finish()
    assert sorted(path.name for path in pictures.iterdir()) == ["same.png"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
