"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triton_attn.train import atomic
from triton_attn.train.errors import UserError


class Killed(BaseException):
    pass


def save(folder: Path, text: str) -> None:
    (atomic.begin_folder(folder) / "a").write_text(text)
    (folder.with_name(f".{folder.name}.new") / "b").write_text(text)
    atomic.swap_folder(folder)


@pytest.mark.parametrize("step", range(6))
def test_a_folder_is_whole_wherever_the_swap_is_killed(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "last"
    save(folder, "old")
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            if calls == step:
                raise Killed
            calls += 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", counted(os.rename))
        patch.setattr(atomic.shutil, "rmtree", counted(atomic.shutil.rmtree))
        try:
            save(folder, "new")
        except Killed:
            pass
        else:
            assert step == 5, "every step was killed once"
    atomic.recover_folder(folder)
    texts = {(folder / name).read_text() for name in ("a", "b")}
    assert texts in ({"old"}, {"new"})
    assert list(tmp_path.iterdir()) == [folder]
    save(folder, "next")
    assert (folder / "a").read_text() == "next"


def test_a_folder_that_never_was_stays_away(tmp_path: Path) -> None:
    atomic.begin_folder(tmp_path / "last")
    atomic.recover_folder(tmp_path / "last")
    assert list(tmp_path.iterdir()) == []


def test_looking_whether_a_folder_is_writable_leaves_nothing(tmp_path: Path) -> None:
    atomic.check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output: cannot write into .*file/run"):
        atomic.check_writable(tmp_path / "file" / "run")
