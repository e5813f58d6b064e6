"""Files that are there whole or not at all."""

from __future__ import annotations

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


def test_files_have_the_usual_mode(tmp_path: Path) -> None:
    with files.new_file(tmp_path / "x") as temporary:
        temporary.touch(0o600)
    (tmp_path / "usual").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode
