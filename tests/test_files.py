"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests import fresh
from triton_attn import files


class Killed(BaseException):
    pass


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    files.write_text(path, "old")

    def fail() -> None:
        with files.new_file(path) as temporary:
            temporary.write_text("half")
            raise Killed

    with pytest.raises(Killed):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", [False, True])
def test_two_processes_write_a_file_side_by_side(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    flush = files.flush

    def fail(_: Path) -> None:
        raise Killed

    def meanwhile(file: Path) -> None:
        monkeypatch.setattr(files, "flush", fail if fails else flush)
        with pytest.raises(Killed) if fails else contextlib.nullcontext():
            files.write_text(path, "theirs")
        flush(file)

    monkeypatch.setattr(files, "flush", meanwhile)
    files.write_text(path, "ours")
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_usual_mode(tmp_path: Path) -> None:
    with files.new_file(tmp_path / "x") as temporary:
        temporary.touch(0o600)
    (tmp_path / "usual").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_mode_is_what_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_temporary_names_are_new_and_keep_the_suffix(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with files.new_file(tmp_path / "a.png") as temporary:
            names.add(temporary.name)
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".png"
    assert len(names) == 3


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (folder / f"{files.MARK}guessed.txt").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        files.write_text(folder / "x.txt", "evil")
    (folder / "y").symlink_to(tmp_path / "precious")
    files.write_text(folder / "y", "ours")  # and a link at the file's own place is replaced
    assert (folder / "y").read_text() == "ours"
    assert not (folder / "y").is_symlink()
    assert (tmp_path / "precious").read_text() == "kept"


KILLED_AS_IT_WRITES = """
import os, signal, sys
from pathlib import Path
from triton_attn import files
files.flush = lambda _: os.kill(os.getpid(), signal.SIGKILL)
files.write_text(Path(sys.argv[1]), "half")
"""


def test_what_a_killed_writer_left_is_cleared_and_what_others_write_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    fresh.python(KILLED_AS_IT_WRITES, str(path), status=-signal.SIGKILL)
    (left,) = tmp_path.glob(f"{files.MARK}*")
    with files.new_file(path) as mine:
        files.clear_leftovers(tmp_path)
        assert not left.exists()
        assert mine.exists()
        mine.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_pipes_and_links_that_look_like_leftovers_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    os.mkfifo(tmp_path / f"{files.MARK}pipe")
    (tmp_path / f"{files.MARK}link").symlink_to(tmp_path / "precious")
    (tmp_path / f"{files.MARK}folder").mkdir()
    files.clear_leftovers(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "none/x", "file/x"])
def test_what_cannot_be_written_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
        files.write_text(tmp_path / name, "")
    assert caught.value.strerror
    assert Path(name).parts[0].encode("unicode_escape").decode()[:8].strip("\\") in str(caught.value)
    assert files.MARK not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    files.write_text(path, "x")
    assert path.read_text() == "x"


def test_a_text_is_read_from_a_file_alone(tmp_path: Path) -> None:
    files.write_text(tmp_path / "x", "é\n")
    (tmp_path / "link").symlink_to("x")
    assert files.read_text(tmp_path / "x") == files.read_text(tmp_path / "link") == "é\n"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, expected in (("pipe", "no file"), ("folder", "directory|no file"), ("none", "No such"), ("a\0", "NUL")):
        with pytest.raises(OSError, match=expected):
            files.read_text(tmp_path / name)
    with pytest.raises(OSError, match="it has 3 bytes, expected at most 2"):
        files.read_text(tmp_path / "x", most=2)
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        files.read_text(tmp_path / "x")
