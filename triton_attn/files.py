"""Files that are there whole or not at all, whenever the process is killed: how everything here is written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what killed processes left is not cleared there
    fcntl = None  # type: ignore[assignment]

MARK = ".triton-attn-"
"""How the names of temporary files begin; the rest is random, for nobody may put a link where one will be."""

LONGEST_SUFFIX = 16
MOST_BYTES = 2**26
"""Of a text: a configuration with the names of a million classes has less."""

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
OLD = os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside ``path``; what is written into it takes its place at the end.

    The file is made by this process, with the permissions that the umask leaves, and keeps the suffix, because
    writers choose the format by it. Several processes may write the same ``path``: the last wins.

    Raises:
        OSError: it cannot be written; the error names ``path``, and what was there before is whole.
    """
    try:
        temporary, held = _create(path)
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if held is not None:
                os.close(held)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a person knows no temporary names
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; errors as for :func:`new_file`."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; errors as for :func:`new_file`."""
    write_bytes(path, text.encode("utf-8"))


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file that may be anything: neither a pipe is waited for, nor a memory full of zeros read.

    Raises:
        OSError: it cannot be read, is no file, or larger than ``most`` bytes.
        ValueError: it is not UTF-8.
    """
    check_name(path)
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)), "rb") as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"it has {about.st_size} bytes, expected at most {most}", str(path))
        return opened.read().decode("utf-8")


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``; those still at work keep theirs."""
    for name in folder.glob(f"{MARK}*"):
        with contextlib.suppress(OSError):
            held = os.open(name, OLD)
            try:
                if _hold(held, wait=False):
                    name.unlink()
            finally:
                os.close(held)


def flush(file: Path) -> None:
    """To the disk before the rename, so that a power cut cannot leave the new name with old contents."""
    if file.is_file():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def check_name(path: Path) -> None:
    """Raise an OSError for a path that no system call takes: one with a NUL, or with letters it has no bytes for."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "a name that cannot be encoded", repr(str(path))) from error
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a name with a NUL in it", repr(str(path)))


def _create(path: Path) -> tuple[Path, int | None]:
    """A new file beside ``path``, and the descriptor whose lock says that its writer lives."""
    check_name(path)
    suffix = path.suffix if len(path.suffix) <= LONGEST_SUFFIX else ""
    while True:
        temporary = path.parent / f"{MARK}{secrets.token_hex(8)}{suffix}"
        held = os.open(temporary, NEW, 0o666)
        if fcntl is None:
            os.close(held)
            return temporary, None
        _hold(held, wait=True)
        if os.fstat(held).st_nlink:  # else it was cleared away before we held it
            return temporary, held
        os.close(held)


def _hold(descriptor: int, wait: bool) -> bool:
    """Lock an open file, until it is closed or this process ends; False where another has it, or nothing can lock."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
