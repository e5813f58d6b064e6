"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

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
