"""One run in a folder at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder``; the system lets them in again when this process ends, however it ends.

    Raises:
        UserError: another process has the folder, or nothing can be locked there.
    """
    lock = FileLock(folder / FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"--output: another process is training in {folder}; wait for its end, or choose another folder"
        ) from error
    except OSError as error:
        raise UserError(f"--output: {folder / FILE} cannot be locked ({error.strerror or error})") from error
    try:
        yield
    finally:
        # While it is held: whoever has opened the same file by then sees that it is gone, and makes a new one.
        with contextlib.suppress(OSError):
            (folder / FILE).unlink()
        lock.release()
