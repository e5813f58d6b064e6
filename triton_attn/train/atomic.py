"""Files and folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes its place at the end.

    The temporary name keeps the suffix, because writers choose the format by it.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.chmod(_file_mode())  # some writers make files that only their owner may read
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
        _flush(file)
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


def _file_mode() -> int:
    """The mode that new files have: only setting the mask tells what it is."""
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def _flush(file: Path) -> None:
    """To the disk before the rename, so that a power cut cannot leave the new name with old contents."""
    if file.is_file():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
