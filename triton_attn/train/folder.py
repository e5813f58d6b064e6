"""An image folder: what is in it, whether it can be read, and how it is split."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..files import check_name
from .errors import UserError, as_user_error
from .image import quietly, why_broken
from .walk import OUTSIDE, SUFFIXES, Walk

Sample = tuple[Image.Image | Path, int]
"""An image, or where it lies, and its label."""

MOST_BROKEN = 0.01
"""The share of the images that may be broken."""

MOST_NAMED = 20
EXPECTED = "expected train/ and val/ with a folder of images per class in each, or a folder of images per class"
KINDS = f"expected files ending in {', '.join(SUFFIXES)}"


@dataclass(frozen=True)
class Found:
    """An image folder: its classes, the samples in ``train/`` or all, those in ``val/``, what was left out."""

    classes: tuple[str, ...]
    train: list[Sample]
    val: list[Sample]
    left_out: str


def scan_folder(root: Path) -> Found:
    """Walk through an image folder; see :class:`triton_attn.train.walk.Walk` for what is left out.

    Raises:
        UserError: the folder is missing or empty, has one class, or an empty class; the folder is named.
    """
    with as_user_error(OSError, prefix="--data: "):
        check_name(root)
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise UserError(f"--data: {root} {what}; expected digits or a folder of images")
    walk = Walk(root)
    top = walk.folders(root)
    parts = {path.name: path for path in top if path.name in ("train", "val")}
    if len(parts) == 1:
        (there,) = parts
        missing = "val" if there == "train" else "train"
        raise UserError(f"--data: {root} has {there}/ but no {missing}/; {EXPECTED}{_left_out(walk)}")
    if not parts:
        classes = _classes(walk, root, top)
        return Found(tuple(classes), _samples(walk, root, classes, classes), [], walk.summary())
    walk.left_out.pop(OUTSIDE, None)  # beside train/ and val/ anything may lie
    walk.enter(list(parts.values()))
    classes = _classes(walk, parts["train"], walk.folders(parts["train"]))
    held_out = _classes(walk, parts["val"], walk.folders(parts["val"]), least=1)
    strange = sorted(set(held_out) - set(classes))
    if strange:
        raise UserError(f"--data: {parts['val']} has classes that {parts['train']} has not: {some(strange)}")
    train = _samples(walk, parts["train"], classes, classes)
    return Found(tuple(classes), train, _samples(walk, parts["val"], classes, held_out, True), walk.summary())


def _classes(walk: Walk, root: Path, folders: Sequence[Path], least: int = 2) -> dict[str, Path]:
    if not folders:
        raise UserError(f"--data: {root} holds no class folders; {EXPECTED}{_left_out(walk)}")
    if len(folders) < least:
        name = folders[0].name
        raise UserError(f"--data: {root} has one class ({name}), expected at least 2; {EXPECTED}{_left_out(walk)}")
    return {folder.name: folder for folder in folders}


def _samples(
    walk: Walk, root: Path, classes: Iterable[str], folders: Mapping[str, Path], may_lack: bool = False
) -> list[Sample]:
    samples: list[Sample] = []
    for label, name in enumerate(classes):
        files = walk.images(folders[name]) if name in folders else []
        if not files and not may_lack:
            raise UserError(f"--data: {folders[name]} holds no images; {KINDS}{_left_out(walk)}")
        samples += [(file, label) for file in files]
    if not samples:
        raise UserError(f"--data: {root} holds no images; {KINDS}{_left_out(walk)}")
    return samples


def _left_out(walk: Walk) -> str:
    summary = walk.summary()
    return f". Left out: {summary}" if summary else ""


def check_images(root: Path, samples: Sequence[Sample], progress: bool = False) -> list[Path]:
    """Decode every image, and return those that cannot be; each is named in a warning on stderr.

    Raises:
        UserError: more than 1 % of them are broken.
    """
    paths = [path for path, _ in samples if isinstance(path, Path)]
    broken = find_broken(paths, progress)
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


def find_broken(paths: Sequence[Path], progress: bool = False) -> dict[Path, str]:
    """The files that cannot be read as images, with the reason; ``progress`` shows a bar."""
    from tqdm import tqdm

    # Decoding lets go of the interpreter lock, so threads do.
    with quietly(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        reasons = tqdm(
            pool.map(why_broken, paths),
            total=len(paths),
            desc="checking images",
            unit="img",
            leave=False,
            disable=None if progress else True,
        )
        return {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}


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


def share_of_classes(samples: Sequence[Sample], fraction: float) -> list[Sample]:
    """A share of the samples of every class, at least one of each; the same whatever the seed of the run."""
    if fraction == 1:
        return list(samples)
    by_label: dict[int, list[int]] = {}
    for index, (_, label) in enumerate(samples):
        by_label.setdefault(label, []).append(index)
    kept = [
        index
        for label, members in by_label.items()
        for index in random.Random(label).sample(members, max(1, round(fraction * len(members))))
    ]
    return [samples[index] for index in sorted(kept)]


def digests(root: Path, samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, list[str]]:
    """Of every class, a digest of its images' names and one of their sizes in bytes: whether they are still the same.

    Raises:
        OSError: an image is gone.
    """
    made = {name: [hashlib.sha256(), hashlib.sha256()] for name in classes}
    for path, label in samples:
        assert isinstance(path, Path)
        names, sizes = made[classes[label]]
        names.update(os.fsencode(path.relative_to(root)) + b"\0")
        sizes.update(b"%d," % os.stat(path).st_size)
    return {name: [digest.hexdigest()[:16] for digest in pair] for name, pair in made.items()}


def some(names: Sequence[str], most: int = 8) -> str:
    """A list for a message, cut where it gets long."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
