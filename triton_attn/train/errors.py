"""Errors that a person can act on: the command line prints them as one line, without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Something about the arguments, the data or the files; the message says what came and what was expected.

    Attributes:
        alone: one of several processes may find it where the others do not, so that each has to say it.
    """

    alone = False


def printable(words: str) -> str:
    """Words on one line, in which nothing speaks to the terminal: names of files may hold any letters and bytes."""
    letters = " ".join(words.split())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in letters)


@contextlib.contextmanager
def as_user_error(*kinds: type[Exception], prefix: str = "", suffix: str = "") -> Iterator[None]:
    """Pass errors of these kinds on as :class:`UserError`, with the same text between ``prefix`` and ``suffix``."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{prefix}{error}{suffix}") from error
