"""Folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ..files import flush
from .errors import UserError


def begin_folder(path: Path) -> Path:
    """An empty temporary folder beside ``path``, to be filled and given to :func:`swap_folder`."""
    temporary = _beside(path, "new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def swap_folder(path: Path) -> None:
    """Put the folder that :func:`begin_folder` gave in the place of ``path``.

    A folder cannot be replaced in one step, so the old one moves aside first. Killed between the two renames, the
    old one is still whole, and :func:`recover_folder` moves it back.
    """
    temporary, old = _beside(path, "new"), _beside(path, "old")
    for file in temporary.rglob("*"):
        flush(file)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Clear away what a kill during :func:`swap_folder` left; ``path`` is whole afterwards if it ever was."""
    old = _beside(path, "old")
    if old.exists() and not path.exists():
        os.rename(old, path)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(_beside(path, "new"), ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Raise unless files can be written into ``folder``, made if need be; leaves nothing behind.

    Raises:
        UserError: they cannot, with the system's reason.
    """
    made: list[Path] = []
    try:
        for part in reversed([folder, *folder.parents]):
            if not part.exists():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output: cannot write into {folder} ({reason}); expected a writable folder") from error
    finally:
        for part in reversed(made):
            part.rmdir()


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")
