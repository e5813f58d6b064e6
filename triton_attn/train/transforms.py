"""From an image to what a network sees: its size, its channels, and the augmentation of what it is trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from .config import MODES

DIGITS = "digits"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEANS = {DIGITS: ((0.305, 0.305, 0.305), (0.376, 0.376, 0.376))}
LUMA = (0.299, 0.587, 0.114)
"""What Pillow makes grey of red, green and blue with."""

MOST_ASPECT = 8
"""Of thinner images only the middle is resized; a square of it is used anyway."""

AUGMENT: dict[str, type[v2.Transform]] = {
    "autoaugment": v2.AutoAugment,
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "augmix": v2.AugMix,
}
"""What ``--auto-augment`` stands for, with torchvision's defaults."""

Statistics = tuple[float, ...]
Transform = Callable[[Image.Image], Tensor]


def normalisation(kind: str, channels: int) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation of the channels, with which images in [0, 1] are normalised.

    Args:
        kind: ``"digits"``, or anything else for photographs.
        channels: 1 (grey), 3 (RGB) or 4 (RGB and opacity, which becomes −1 to 1).
    """
    mean, std = MEANS.get(kind, IMAGENET)
    if channels == 1:
        return (sum(share * value for share, value in zip(LUMA, mean, strict=True)),), (sum(std) / 3,)
    return (mean, std) if channels == 3 else ((*mean, 0.5), (*std, 0.5))


def eval_transform(
    image_size: int, mean: Sequence[float], std: Sequence[float], crop_fraction: float = 1.0
) -> Transform:
    """From a PIL image of any mode and size to a normalised ``(C, image_size, image_size)`` float32 tensor.

    The shorter side is resized to ``image_size / crop_fraction``, and the middle is taken.

    Args:
        image_size: in pixels.
        mean, std: of 1, 3 or 4 channels, which the image is brought to.
        crop_fraction: the share of the shorter side that is seen, above 0 and at most 1.
    """
    square = [v2.Resize(math.floor(image_size / crop_fraction)), v2.CenterCrop(image_size)]
    return v2.Compose([_channels(mean), v2.Lambda(_not_thin), *square, *_to_tensor(mean, std)])


def train_transform(
    kind: str,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    auto_augment: str = "none",
    random_erasing: float = 0.0,
) -> Transform:
    """The same with augmentation: random crops and flips of photographs, small shifts and turns of digits.

    Args:
        kind: ``"digits"``, or anything else for photographs.
        image_size, mean, std: as for :func:`eval_transform`.
        auto_augment: one of :data:`AUGMENT` behind crop and flip, or ``"none"``.
        random_erasing: how probable it is that a rectangle is erased, at the end.
    """
    if kind == DIGITS:
        # No flip: a mirrored 2 is no 2.
        augment: list[v2.Transform] = [
            v2.Resize(image_size),
            v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
        ]
    else:
        augment = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()]
    if auto_augment != "none":
        augment.append(AUGMENT[auto_augment]())
    erase = [v2.RandomErasing(random_erasing)] if random_erasing else []
    return v2.Compose([_channels(mean), *augment, *_to_tensor(mean, std), *erase])


def _channels(mean: Sequence[float]) -> v2.Transform:
    return v2.Lambda(partial(_in_mode, MODES[len(mean)]))


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _not_thin(image: Image.Image) -> Image.Image:
    """The middle of an image that is many times as long as it is wide: resized, the rest would fill the memory."""
    width, height = image.size
    most = MOST_ASPECT * min(width, height)
    if max(width, height) <= most:
        return image
    wide, high = min(width, most), min(height, most)
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def _to_tensor(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(mean), std=list(std))]
