"""An image folder: what is in it, whether it can be read, and how it is split."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from .errors import UserError

Sample = tuple[Image.Image | Path, int]
"""An image, or where it lies, and its label."""

MOST_BROKEN = 0.01
"""The share of the images that may be broken."""

MOST_NAMED = 20
EXPECTED = "expected train/ and val/ with a folder of images per class in each, or a folder of images per class"


def scan_folder(root: Path) -> tuple[tuple[str, ...], list[Sample], list[Sample]]:
    """The classes, the training samples, and those in ``val/`` (none if there is no such folder).

    Raises:
        UserError: the folder is missing or empty, has one class, or an empty class; the folder is named.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"--data: {root} {what}; expected digits or a folder of images")
    subfolders = {part: root / part for part in ("train", "val") if (root / part).is_dir()}
    if len(subfolders) == 1:
        (there,) = subfolders
        missing = "val" if there == "train" else "train"
        raise UserError(f"--data: {root} has {there}/ but no {missing}/; {EXPECTED}")
    if not subfolders:
        classes = _classes(root)
        return classes, _samples(root, classes), []
    classes = _classes(subfolders["train"])
    strange = set(_classes(subfolders["val"], least=1)) - set(classes)
    if strange:
        raise UserError(
            f"--data: {subfolders['val']} has classes that {subfolders['train']} has not: {some(sorted(strange))}"
        )
    return classes, _samples(subfolders["train"], classes), _samples(subfolders["val"], classes, may_lack=True)


def _classes(root: Path, least: int = 2) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise UserError(f"--data: {root} holds no class folders; {EXPECTED}")
    if len(names) < least:
        raise UserError(f"--data: {root} has one class ({names[0]}), expected at least 2; {EXPECTED}")
    return names


def _samples(root: Path, classes: Sequence[str], may_lack: bool = False) -> list[Sample]:
    samples: list[Sample] = []
    for label, name in enumerate(classes):
        files = sorted(
            Path(folder, file)
            for folder, _, found in os.walk(root / name, followlinks=True)
            for file in found
            if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith(".")
        )
        if not files and not may_lack:
            raise UserError(f"--data: {root / name} holds no images; expected files ending in {some(IMG_EXTENSIONS)}")
        samples += [(file, label) for file in files]
    if not samples:
        raise UserError(f"--data: {root} holds no images; expected files ending in {some(IMG_EXTENSIONS)}")
    return samples


def check_images(root: Path, samples: Sequence[Sample], progress: bool = False) -> list[Path]:
    """Decode every image, and return those that cannot be; each is named in a warning on stderr.

    Raises:
        UserError: more than 1 % of them are broken.
    """
    from tqdm import tqdm

    paths = [path for path, _ in samples if isinstance(path, Path)]
    # Decoding lets go of the interpreter lock, so threads do.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        reasons = tqdm(
            pool.map(_why_broken, paths),
            total=len(paths),
            desc="checking images",
            unit="img",
            leave=False,
            disable=None if progress else True,
        )
        broken = {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}
    if len(broken) > MOST_BROKEN * len(paths):
        named = some([f"{path} ({why})" for path, why in broken.items()], MOST_NAMED)
        share = 100 * len(broken) / len(paths)
        raise UserError(
            f"--data: {len(broken)} of the {len(paths)} images in {root} ({share:.1f} %) cannot be read, expected at "
            f"most {100 * MOST_BROKEN:g} %: {named}"
        )
    if progress:
        for path, why in broken.items():
            print(f"warning: --data: {path} is left out: it cannot be read ({why})", file=sys.stderr)
    return list(broken)


def _why_broken(path: Path) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF data and the like do no harm
            with Image.open(path) as image:
                image.draft("RGB", (1, 1))  # a JPEG is decoded at an eighth of its size: all its bytes are still read
                image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error …
        return "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return None


def split_by_class(
    samples: Sequence[Sample], fraction: float, classes: Sequence[str] | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Split into a training and a held-out part, with the same share of every class in both.

    The same samples are always split in the same way.

    Raises:
        UserError: a class has only one image.
    """
    by_label: dict[int, list[Sample]] = {}
    for sample in samples:
        by_label.setdefault(sample[1], []).append(sample)
    train: list[Sample] = []
    held_out: list[Sample] = []
    for label, members in sorted(by_label.items()):
        if len(members) < 2:
            name = classes[label] if classes else label
            raise UserError(f"--data: class {name} has one image; expected at least 2, to train on and to hold out")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        members = random.Random(label).sample(members, len(members))
        held_out += members[:count]
        train += members[count:]
    return train, held_out


def some(names: Sequence[str], most: int = 8) -> str:
    """A list for a message, cut where it gets long."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
