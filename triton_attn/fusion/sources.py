"""Fingerprints of other people's forwards: a recipe holds for the source that it was written after."""

from __future__ import annotations

import hashlib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator

from torch import nn

# What is no part of what a source says: comments, and how it is spaced (but for lines and how deep they are).
_SPACING = (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER)
_STRUCTURE = {tokenize.NEWLINE: "newline", tokenize.INDENT: "indent", tokenize.DEDENT: "dedent"}


def fingerprint(cls: type[nn.Module], *helpers: str) -> str | None:
    """Of the source of a class's forward, and of the helpers that it calls; None where there is no source.

    Comments, docstrings and spacing are no part of it.
    """
    found = hashlib.sha256()
    for name in ("forward", *helpers):
        try:
            source = inspect.getsource(getattr(cls, name))
        except (OSError, TypeError):
            return None
        found.update("\n".join(_words(textwrap.dedent(source))).encode())
    return found.hexdigest()[:16]


def _words(source: str) -> Iterator[str]:
    at_start = True  # of a statement
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _SPACING or (at_start and token.type in (tokenize.STRING, tokenize.NEWLINE)):
            continue  # a statement of a string alone is a docstring
        yield _STRUCTURE.get(token.type, token.string)
        at_start = token.type in _STRUCTURE
