"""A full disk, names that no system takes, places to which nothing can be written: one line, and nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from processes import Command, die_at_file, limit_files

from triton_attn.train.checkpoint import Card, load_model, save_model

Main = Callable[..., tuple[int, str, str]]
SMALL = ("--image-size", 16, "--batch-size", 8, "--workers", 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    card = Card("resnet18", "se", ("stem",), {}, 2, ("cat", "dog"), 16)
    save_model(path, card.build().state_dict(), card)
    return path


def on_a_full_disk(largest: int, log: Path, *words: object) -> str:
    """Run the command line where no file may be larger; what it says, which is one line behind what it prints."""
    log.unlink(missing_ok=True)
    command = Command(words, log, partial(limit_files, largest))
    assert command.wait() == 2
    text = log.read_text()
    line = text.splitlines()[-1]
    assert line.startswith("triton-attn: error: ")
    assert text.count("error") == 1, text
    assert "Traceback" not in text
    assert "File too large" in line
    return line


# best.safetensors has 1.3 million bytes, Adam's state twice that.
@pytest.mark.parametrize(("largest", "at"), [(9999, "best.safetensors"), (2_000_000, "last")])
def test_a_full_disk_in_a_run_that_begins(largest: int, at: str, shared_pictures: Path, tmp_path: Path) -> None:
    words = ("train", "--data", shared_pictures, "--output", tmp_path / "new", "--epochs", 1, *SMALL)
    assert f"{tmp_path}/new/{at}: " in on_a_full_disk(largest, tmp_path / "log", *words)
    assert not [path for path in (tmp_path / "new").rglob("*") if path.name.startswith(".")]


def test_a_full_disk_in_a_run_that_goes_on(trained: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    on_a_full_disk(9999, tmp_path / "log", "train", "--output", trained, "--resume", "--epochs", 3)
    after = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert {path.name for path in after if after[path] != before[path]} <= {"config.yaml"}


@pytest.mark.parametrize("written", [0, 1, 3, 7, 8])
def test_a_disk_that_fills_up_between_two_files(
    written: int, trained: Path, triton_attn_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that an epoch writes fails once; then there is room, and the run goes on to the same end."""
    real, done = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal done
        if done == written:
            raise OSError(28, "No space left on device")
        done += 1
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        status, _, error = triton_attn_main("train", "--output", trained, "--resume", "--epochs", 3)
    assert status == 2
    assert error.count("\n") == 1
    assert "No space left on device" in error
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    words = [] if written else ["--epochs", 3]  # the first is config.yaml
    assert triton_attn_main("train", "--output", trained, "--resume", *words)[0] == 0
    assert load_model(trained / "last.safetensors")[1].epoch == 3
    assert (trained / "metrics.csv").read_text().count("\n") == 4
    assert not [path for path in trained.rglob("*") if path.name.startswith(".")]


def test_a_full_disk_at_a_picture(checkpoint: Path, shared_pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    for name, words in (
        ("confusion.png", ("eval", checkpoint, "--data", shared_pictures, "--output", tmp_path / "o")),
        ("sheet.png", ("show", checkpoint, "digits:1", "--output", tmp_path / "o" / "sheet.png")),
    ):
        (tmp_path / "o" / name).write_bytes(b"the old one")
        assert "--output: cannot be written: " in on_a_full_disk(1000, tmp_path / "log", *words)
        assert (tmp_path / "o" / name).read_bytes() == b"the old one"
    assert len(list((tmp_path / "o").iterdir())) == 2


NUL = "a\0b"
LONG = "x" * 300


@pytest.mark.parametrize("word", ["", NUL, LONG, "/proc/nowhere", f"{LONG}/x", "\udcff\0"])
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--image-size", 16, "--epochs", 1, "--output"),
        ("train", "--resume", "--output"),
        ("train", "--data"),
        ("train", "--weights"),
        ("eval",),
        ("eval", "CHECKPOINT", "--data"),
        ("eval", "CHECKPOINT", "--output"),
        ("show", "CHECKPOINT", "digits:1", "--output"),
        ("show", "CHECKPOINT"),
    ],
)
def test_words_that_are_no_paths(
    words: tuple[object, ...], word: str, checkpoint: Path, tmp_path: Path, triton_attn_main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if words[-1] == "--output" and words[0] == "show" and word.startswith(("/", "x")):
        word += ".png"
    before = sorted(tmp_path.rglob("*"))
    status, out, error = triton_attn_main(*(checkpoint if each == "CHECKPOINT" else each for each in words), word)
    assert status == 2
    assert out == ""
    assert error.startswith("triton-attn: error: ")
    assert error.count("\n") == 1, error
    assert len(error) < 1500
    assert sorted(tmp_path.rglob("*")) == before


def test_show_and_eval_at_names_that_are_taken_by_links(
    checkpoint: Path, shared_pictures: Path, tmp_path: Path
) -> None:
    """Names that could be guessed lead to a precious file; it stays, and pictures are drawn."""
    (tmp_path / "precious").write_text("kept")
    for name in (".s.tmp.png", ".confusion.tmp.png", "s.png", "confusion.png"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    Command(["show", checkpoint, "digits:1", "--output", tmp_path / "s.png"], tmp_path / "1.log").finish()
    Command(["eval", checkpoint, "--data", shared_pictures], tmp_path / "2.log").finish()
    assert (tmp_path / "precious").read_text() == "kept"
    for name in ("s.png", "confusion.png"):
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_every_file_of_a_run_has_the_mode_of_the_umask(
    shared_pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    before = os.umask(0o027)
    try:
        words = ("train", "--data", shared_pictures, "--output", tmp_path / "run", "--epochs", 1, *SMALL)
        assert triton_attn_main(*words)[0] == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


# config.yaml, best.safetensors, last.safetensors, the four of the state, metrics.csv, TensorBoard's, curves.png.
@pytest.mark.parametrize("number", [0, 1, 3, 8, 9])
def test_what_a_killed_run_left_is_cleared_at_the_next_start(
    number: int, shared_pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    output = tmp_path / "run"
    begin = ["train", "--data", shared_pictures, "--output", output, "--epochs", 1, *SMALL]
    command = Command(begin, tmp_path / "log", partial(die_at_file, number))
    assert command.wait() == -signal.SIGKILL
    left = [path for path in output.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert [path for path in left if path.parent.name in ("run", "tensorboard")], "what the killed writer had begun"
    words = ["train", "--output", output, "--resume"] if (output / "config.yaml").exists() else begin
    assert triton_attn_main(*words)[0] == 0
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]
