"""Names as pictures can show them: in fonts that have their letters, and as escapes where no font here has."""

from __future__ import annotations

import contextlib
import functools
import logging
import unicodedata
from collections.abc import Iterable, Iterator

import matplotlib
from matplotlib import font_manager

BASE = "DejaVu Sans"  # comes with matplotlib
WITHOUT_LETTERS = ("Last Resort", "STIX", "cm", "Emoji")
"""Fonts whose codes do not stand for what they show, or whose pictures matplotlib cannot draw."""

JOINERS = "\u200c\u200d"  # letters of Persian and Indic scripts are joined by them


def plain(words: str) -> str:
    """A name without what cannot be drawn: control characters and bytes that are no letters become escapes."""
    return "".join(_escape(letter) if _is_control(letter) else letter for letter in words)


def drawable(words: str) -> str:
    """A name in which every letter is one of a font that is installed here, or an escape such as ``\\u732b``."""
    return "".join(_escape(letter) if _font_of(letter) is None else letter for letter in plain(words))


@contextlib.contextmanager
def letters_for(words: Iterable[str]) -> Iterator[None]:
    """Draw with fonts that have the letters of ``words``, which may be anything, and take a ``$`` for what it is."""
    found = {_font_of(letter): None for letter in sorted(set("".join(map(drawable, words))))}
    families = list({BASE: None} | {name: None for name in found if name is not None})
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # a font without a bold face is drawn in the one it has
    try:
        with matplotlib.rc_context({"font.family": families, "text.parse_math": False}):
            yield
    finally:
        log.setLevel(level)


def shortened(words: str, most: int) -> str:
    """A name of at most ``most`` letters: the beginning and the end, which is where long names differ."""
    if len(words) <= most:
        return words
    end = most // 3
    return f"{words[: most - end - 1]}…{words[len(words) - end :]}"


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in JOINERS


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("ascii", "backslashreplace").decode() if code > 0x7F else f"\\x{code:02x}"


@functools.lru_cache(maxsize=4096)
def _font_of(letter: str) -> str | None:
    """The first font family that has a letter; None if none has."""
    return next((name for name in _families() if ord(letter) in _letters(name)), None)


@functools.cache
def _families() -> tuple[str, ...]:
    names = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.weight, entry.stretch) == ("normal", 400, "normal")
        and not any(word in entry.name for word in WITHOUT_LETTERS)
    }
    # Those like the usual one first, then by name: the same picture at every run.
    return (BASE, *sorted(names - {BASE}, key=lambda name: ("Sans" not in name, name)))


@functools.lru_cache(maxsize=256)
def _letters(family: str) -> frozenset[int]:
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=False)
        return frozenset(font_manager.get_font(path).get_charmap())
    except (ValueError, RuntimeError, OSError):  # a font that cannot be read, or has pictures of a fixed size only
        return frozenset()
