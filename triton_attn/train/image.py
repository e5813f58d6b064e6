"""One image from a file, as it was meant: upright, of eight bits a channel, its first frame."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import UserError

FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI",
    "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""What is opened, whatever a file is called: some of Pillow's other readers start programs (PostScript)."""

ORIENTATION = 274  # EXIF's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(UserError):
    """A file that cannot be read as an image; the message names it."""

    alone = True

    def __init__(self, message: str) -> None:
        # PyTorch makes the error of a worker anew, from its traceback: the message is the end of that.
        super().__init__(message.rpartition("BrokenImage: ")[2].strip())


def read_image(path: Path, mode: str = "RGB") -> Image.Image:
    """Read an image of eight bits a channel, turned upright.

    Sixteen bits and floats are scaled by their depth, not cut off; of an animation the first frame is taken.

    Args:
        path: the file.
        mode: Pillow's name of the channels: ``L`` (grey), ``RGB``, or ``RGBA``, without which alpha is left off.

    Raises:
        BrokenImage: it cannot be read, is of a format that is not opened, or has more pixels than Pillow's limit.
    """
    try:
        with quietly(), _opened(path) as image:
            image.load()
            return _eight_bits(_upright(image)).convert(mode)
    except Exception as error:
        raise BrokenImage(f"{path}: cannot be read as an image ({_reason(error)})") from error


def why_broken(path: Path) -> str | None:
    """Why an image cannot be read, or None; quicker than reading it. For threads, under one :func:`quietly`."""
    try:
        with _opened(path) as image:
            image.draft("RGB", (1, 1))  # a JPEG is decoded at an eighth of its size: all its bytes are still read
            image.load()
    except Exception as error:
        return _reason(error)
    return None


@contextmanager
def quietly() -> Iterator[None]:
    """Without Pillow's warnings: odd EXIF data, and sizes below its limit, do no harm. Not for several threads each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    Image.init()
    # A pipe that is opened waits for its other end, unless told otherwise.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no file")
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            yield image


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF data that cannot be read say nothing
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of more than eight bits, scaled to eight; others as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    pixels = np.asarray(image, dtype=np.float64)
    pixels = np.where(np.isfinite(pixels), pixels, 0.0)
    if image.mode.startswith("I;"):
        depth = 2.0**16 - 1
    else:
        # Integers of 32 bits stand for 16 where a format or Pillow has none of 16, and floats are 0 to 1, or integers
        # by another name: the smallest of the usual depths that holds them all.
        depths = (2.0**16 - 1, 2.0**31 - 1) if image.mode == "I" else (1.0, 2.0**8 - 1, 2.0**16 - 1, 2.0**32 - 1)
        depth = next((each for each in depths if pixels.max() <= each), float(pixels.max()))
    return Image.fromarray(np.clip(np.round(pixels * (255 / depth)), 0, 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    """In a few words; decoders raise OSError, SyntaxError, ValueError, struct.error and others."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
