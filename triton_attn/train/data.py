"""The images: scikit-learn's digits or a folder, their transforms, and loaders that replay an epoch exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from .folder import Sample, check_images, digests, scan_folder, split_by_class
from .image import read_image

DIGITS = "digits"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGITS_MEAN, DIGITS_STD = (0.305, 0.305, 0.305), (0.376, 0.376, 0.376)
MOST_ASPECT = 8
"""Of thinner images only the middle is resized; a square of it is used anyway."""

Channels = tuple[float, float, float]
Transform = Callable[[Image.Image], Tensor]


def eval_transform(image_size: int, mean: Channels, std: Channels) -> Transform:
    """From a PIL image of any mode and size to a normalised ``(3, image_size, image_size)`` float32 tensor.

    The shorter side is resized to ``image_size``, and the middle is taken.
    """
    square = [v2.Resize(image_size), v2.CenterCrop(image_size)]
    return v2.Compose([v2.RGB(), v2.Lambda(_not_thin), *square, *_to_tensor(mean, std)])


def _not_thin(image: Image.Image) -> Image.Image:
    """The middle of an image that is many times as long as it is wide: resized, the rest would fill the memory."""
    width, height = image.size
    most = MOST_ASPECT * min(width, height)
    if max(width, height) <= most:
        return image
    wide, high = min(width, most), min(height, most)
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def train_transform(kind: str, image_size: int, mean: Channels, std: Channels) -> Transform:
    """The same with augmentation: random crops and flips of photographs, small shifts and turns of digits."""
    if kind == DIGITS:
        # No flip: a mirrored 2 is no 2.
        augment = [
            v2.Resize(image_size),
            v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
        ]
    else:
        augment = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()]
    return v2.Compose([v2.RGB(), *augment, *_to_tensor(mean, std)])


def _to_tensor(mean: Channels, std: Channels) -> list[v2.Transform]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(mean), std=list(std))]


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

    @property
    def mean(self) -> Channels:
        return DIGITS_MEAN if self.kind == DIGITS else IMAGENET_MEAN

    @property
    def std(self) -> Channels:
        return DIGITS_STD if self.kind == DIGITS else IMAGENET_STD


def load_images(data: str, val_fraction: float = 0.2, check: bool = True, progress: bool = False) -> Images:
    """The images that ``--data`` names. The held-out part is the same whatever the seed of the run.

    Args:
        data: ``"digits"`` or a folder, with ``train/`` and ``val/`` or with one folder per class.
        val_fraction: the share of every class that is held out, where there is no ``val/``.
        check: read every image of a folder now, so that broken ones are known before training starts.
        progress: show a bar meanwhile.

    Raises:
        UserError: a folder that is missing, empty, of one class, or with more than 1 % broken images.
    """
    if data == DIGITS:
        samples = digit_images()
        train, val = split_by_class(samples, val_fraction)
        return Images(DIGITS, tuple("0123456789"), train, val)
    found = scan_folder(Path(data))
    train, val, skipped = found.train, found.val, list[Path]()
    if check:
        skipped = check_images(Path(data), [*train, *val], progress)
        broken = set(skipped)
        train, val = ([sample for sample in part if sample[0] not in broken] for part in (train, val))
    files = digests(Path(data), [*train, *val], found.classes)
    if not found.val:
        train, val = split_by_class(train, val_fraction, found.classes)
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
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, label = self.samples[index]
        if not isinstance(image, Image.Image):
            image = read_image(image)
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
