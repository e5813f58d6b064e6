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
    with atomic.new_folder(folder) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


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
        patch.setattr(atomic, "remove", counted(atomic.remove))
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
    (tmp_path / ".last.0123.new").mkdir()  # as a process left it that was killed
    atomic.recover_folder(tmp_path / "last")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_fails_leaves_the_old_one_and_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, "old")

    def fail() -> None:
        with atomic.new_folder(folder) as new:
            (new / "a").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="last") as caught:
        fail()
    assert caught.value.filename == str(folder)
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_looking_whether_a_folder_is_writable_leaves_nothing(tmp_path: Path) -> None:
    atomic.check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output: cannot write into .*file/run"):
        atomic.check_writable(tmp_path / "file" / "run")


def test_folders_for_a_while_have_names_that_nobody_knows_and_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with atomic.new_folder(tmp_path / "last") as one, atomic.new_folder(tmp_path / "last") as two:
        assert one != two
        assert one.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_links_are_removed_and_not_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("kept")
    folder = tmp_path / "run" / "last"
    folder.parent.mkdir()
    for name in (folder, folder.with_name(".last.old"), folder.with_name(".last.new")):
        name.symlink_to(tmp_path / "precious", target_is_directory=True)
    atomic.recover_folder(folder)
    save(folder, "new")
    assert (folder / "a").read_text() == "new"
    assert (tmp_path / "precious" / "x").read_text() == "kept"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_names_that_the_system_does_not_take(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output: cannot write into"):
        atomic.check_writable(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
