"""The images: scikit-learn's digits or a folder, and loaders that replay an epoch exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .folder import Sample, check_images, digests, scan_folder, share_of_classes, split_by_class
from .image import read_image
from .transforms import DIGITS, Transform


@dataclass(frozen=True)
class Images:
    """What there is to train on and to check with.

    Attributes:
        kind: ``"digits"`` or ``"folder"``.
        classes: the names of the classes; a label is an index into them.
        train, val: pairs of image (a PIL image, or a path) and label.
        skipped: the broken images that were left out.
        left_out: what else was, in words.
        files: digests of the names and of the sizes of the images, by class; of digits none.
    """

    kind: str
    classes: tuple[str, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]
    skipped: tuple[Path, ...] = ()
    left_out: str = ""
    files: dict[str, list[str]] = field(default_factory=dict)


def load_images(
    data: str, val_fraction: float = 0.2, check: bool = True, progress: bool = False, train_fraction: float = 1.0
) -> Images:
    """The images that ``--data`` names. The held-out part is the same whatever the seed of the run.

    Args:
        data: ``"digits"`` or a folder, with ``train/`` and ``val/`` or with one folder per class.
        val_fraction: the share of every class that is held out, where there is no ``val/``.
        check: read every image of a folder now, so that broken ones are known before training starts.
        progress: show a bar meanwhile.
        train_fraction: the share of every class that is trained on, of what is not held out.

    Raises:
        UserError: a folder that is missing, empty, of one class, or with more than 1 % broken images.
    """
    if data == DIGITS:
        samples = digit_images()
        train, val = split_by_class(samples, val_fraction)
        return Images(DIGITS, tuple("0123456789"), share_of_classes(train, train_fraction), val)
    found = scan_folder(Path(data))
    train, val, skipped = found.train, found.val, list[Path]()
    if check:
        skipped = check_images(Path(data), [*train, *val], progress)
        broken = set(skipped)
        train, val = ([sample for sample in part if sample[0] not in broken] for part in (train, val))
    files = digests(Path(data), [*train, *val], found.classes)
    if not found.val:
        train, val = split_by_class(train, val_fraction, found.classes)
    train = share_of_classes(train, train_fraction)
    return Images("folder", found.classes, train, val, tuple(skipped), found.left_out, files)


def digit_images() -> list[Sample]:
    """scikit-learn's bundled set: 1,797 real handwritten digits as 8×8 grey PIL images, with their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0 to 16
    return [(Image.fromarray(image), int(label)) for image, label in zip(pixels, digits.target, strict=True)]


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Transformed images by ``index``, or by ``(index, seed)`` where the transform is random.

    The seed comes with the index, so that an image's augmentation depends neither on what was drawn before it nor on
    the number of worker processes.

    Args:
        samples: images or their paths, with labels.
        transform: what becomes of an image.
        mode: Pillow's name of the channels that are read of a file.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, mode: str = "RGB") -> None:
        self.samples, self.transform, self.mode = samples, transform, mode

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, label = self.samples[index]
        if not isinstance(image, Image.Image):
            image = read_image(image, self.mode)
        if seed is None:
            return self.transform(image), label
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return self.transform(image), label


class EpochSampler(Sampler[tuple[int, int]]):
    """A random order with a seed for every image, both functions of the run's seed and the epoch alone."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        return iter(list(zip(order, seeds, strict=True)))


def epoch_seed(seed: int, epoch: int, process: int = 0) -> int:
    """One seed from several, without the overlaps that a sum of them has."""
    return int(np.random.SeedSequence([seed, epoch, process]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def train_loader(dataset: ImageSet, batch_size: int, workers: int, seed: int, processes: int = 1) -> DataLoader[Any]:
    """Batches in the order of an :class:`EpochSampler` (the loader's ``sampler``: set its ``epoch``).

    The last batch is dropped if it is short: batch norm does badly on a few images, and fails on one.
    """
    full = len(dataset) >= batch_size * processes
    sampler = EpochSampler(len(dataset), seed)
    return _loader(dataset, batch_size, workers, sampler=sampler, drop_last=full)


def val_loader(dataset: ImageSet, batch_size: int, workers: int) -> DataLoader[Any]:
    """All images, in order."""
    return _loader(dataset, batch_size, workers)


def _loader(dataset: ImageSet, batch_size: int, workers: int, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        **kwargs,
    )
