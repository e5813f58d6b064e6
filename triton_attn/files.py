"""Files that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(path: Path, mark: str = "tmp") -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes its place at the end.

    The temporary name keeps the suffix, because writers choose the format by it. ``mark`` is the rest of it: as it is,
    what a killed process left is written over by the next, and large files do not pile up.
    """
    temporary = path.with_name(f".{path.stem}.{mark}{path.suffix}")
    try:
        yield temporary
        temporary.chmod(_file_mode())  # some writers make files that only their owner may read
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; several processes may write the same one, and the last wins."""
    with new_file(path, secrets.token_hex(4)) as temporary:  # processes in two containers may be of the same number
        temporary.write_text(text, encoding="utf-8")


def flush(file: Path) -> None:
    """To the disk before the rename, so that a power cut cannot leave the new name with old contents."""
    if file.is_file():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def _file_mode() -> int:
    """The mode that new files have: only setting the mask tells what it is."""
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask
