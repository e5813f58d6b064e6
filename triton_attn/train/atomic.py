"""Folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..files import check_name, clear_leftovers, flush
from .errors import UserError


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, which takes its place at the end.

    A folder cannot be replaced in one step, so the old one moves aside first. Killed between the two renames, the
    old one is still whole, and :func:`recover_folder` moves it back.

    Raises:
        OSError: it cannot be written; the error names ``path``, and what was there before is whole.
    """
    temporary, old = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new"), _aside(path)
    try:
        os.mkdir(temporary)  # which fails if anything is there
        try:
            yield temporary
            for file in temporary.iterdir():
                flush(file)
            remove(old)
            if os.path.lexists(path):
                os.rename(path, old)
            os.rename(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                remove(temporary)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    with contextlib.suppress(OSError):  # the new one is there; what could not be removed is at the next start
        remove(old)


def recover_folder(path: Path) -> None:
    """Clear away what a kill during :func:`new_folder` left; ``path`` is whole afterwards if it ever was.

    Only for the one process that may swap it.
    """
    old = _aside(path)
    if os.path.lexists(old) and not os.path.lexists(path):
        os.rename(old, path)
    remove(old)
    for left in path.parent.glob(f".{path.name}.*new"):
        remove(left)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, but not what the link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise unless files can be written into ``folder``, made if need be; leaves nothing behind.

    What killed processes left in it is cleared away.

    Raises:
        UserError: they cannot, with the system's reason.
    """
    try:
        check_name(folder)
        there = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
        if there == folder:
            clear_leftovers(folder)
            with tempfile.TemporaryFile(dir=folder):
                return
        # A folder of a new name, for others may be about to make the one that is wanted.
        made = tempfile.mkdtemp(dir=there)
        try:
            folder.lstat()  # a name that is too long is found here
        except FileNotFoundError:
            pass
        finally:
            os.rmdir(made)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output: cannot write into {folder} ({reason}); expected a writable folder") from error


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
