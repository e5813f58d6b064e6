"""Positions on an image, from which non-local attention is seen: as a person writes them, and as cells of a map."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import UserError

Point = tuple[int, int]
GRID = ("0.25,0.25", "0.25,0.75", "0.5,0.5", "0.75,0.25", "0.75,0.75")
"""The middle of the image and the middles of its four quarters: where attention is seen from by default."""


def parse_points(words: Sequence[str], size: Point) -> list[Point]:
    """Pixels ``(y, x)`` of an image of ``size`` ``(H, W)``.

    Args:
        words: ``"y,x"`` each, in whole pixels, of which negative ones count from the lower right (-1 is the last), or,
            where both have a decimal point, as fractions of height and width.
        size: the image's height and width in pixels.

    Raises:
        UserError: a word of another form, or a position outside of the image.
    """
    return [_parse(word, size) for word in words]


def _parse(word: str, size: Point) -> Point:
    fractions = re.fullmatch(r"\s*(-?\d*\.\d*)\s*,\s*(-?\d*\.\d*)\s*", word)
    pixels = re.fullmatch(r"\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*", word)
    try:
        if fractions:
            v, u = float(fractions[1]), float(fractions[2])
            inside = 0 <= v <= 1 and 0 <= u <= 1
            y, x = (min(int(part * length), length - 1) for part, length in zip((v, u), size, strict=True))
        elif pixels:
            y, x = (
                int(part) + length * part.startswith("-") for part, length in zip(pixels.groups(), size, strict=True)
            )
            inside = 0 <= y < size[0] and 0 <= x < size[1]
        else:
            raise ValueError("neither")
    except ValueError:
        raise UserError(
            f"--at: expected Y,X in whole pixels (12,30) or both as fractions (0.5,0.25), got {word!r}"
        ) from None
    if not inside:
        raise UserError(
            f"--at: {word} lies outside of the image, which is {size[0]}×{size[1]} pixels as the network sees it; "
            f"expected 0,0 to {size[0] - 1},{size[1] - 1}, as many back from -1,-1, or fractions from 0.0 to 1.0"
        )
    return y, x


def cell_of(point: Point, image: Point, grid: Point) -> Point:
    """The cell ``(row, column)`` of a ``grid`` ``(h, w)``, laid over an ``image`` ``(H, W)``, that holds the middle of
    the pixel ``point`` ``(y, x)``."""
    row, column = (int((p + 0.5) * cells / size) for p, size, cells in zip(point, image, grid, strict=True))
    return row, column
