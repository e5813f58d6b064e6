"""What a run is not begun or resumed with: other data than before, batches that cannot be normalised."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import FILE, Config
from .data import Images
from .errors import UserError
from .folder import some
from .recipes import frozen_norms


def describe_images(images: Images) -> dict[str, Any]:
    """What ``config.yaml`` says about the data."""
    return {
        "train_images": len(images.train),
        "val_images": len(images.val),
        "classes": list(images.classes),
        "files": images.files,
    }


def refuse_other_data(config: Config, images: Images, dataset: dict[str, Any]) -> None:
    """Raise a UserError if the data have changed since the run began."""
    changed = f"--data: {config.data} has changed since the run in {config.output} began"
    now = describe_images(images)
    if any(key not in dataset for key in now):
        raise UserError(
            f"--data: {Path(config.output) / FILE} does not say what was in the images ({', '.join(now)}), as it does "
            "since version 2; start another run in another --output"
        )
    for key in ("train_images", "val_images", "classes"):
        if dataset[key] != now[key]:
            raise UserError(f"{changed}: {key.replace('_', ' ')} {_told(now[key])}, expected {_told(dataset[key])}")
    changes = []
    for name, (names, sizes) in images.files.items():
        old_names, old_sizes = dataset["files"].get(name, ["", ""])
        if names != old_names:  # in another order, so that the sizes say nothing
            changes.append(f"{name} (other names)")
        elif sizes != old_sizes:
            changes.append(f"{name} (other sizes)")
    if changes:
        raise UserError(
            f"{changed}: images were renamed or replaced in {some(changes)}; put the old ones back, or start another "
            f"run (--weights {config.output}/last.safetensors goes on from its weights)"
        )


def refuse_lone_images(config: Config, model: nn.Module, images: int, processes: int) -> None:
    """Raise a UserError if batch norm would have to normalise one value, as it has of one image on a map of 1×1.

    Args:
        config: resolved.
        model: its network, frozen where it is to be.
        images: how many there are to train on.
        processes: how many take batches of them.
    """
    least = config.batch_size
    if images < least * processes:  # the last batch is not dropped
        least = images % config.batch_size or config.batch_size
    if least > 1:
        return
    assert config.image_size is not None
    probe = copy.deepcopy(model).train()  # whose statistics nobody needs
    for norm in frozen_norms(probe):
        norm.eval()
    try:
        with torch.no_grad():
            probe(torch.zeros(1, config.in_channels, config.image_size, config.image_size))
    except ValueError as error:
        raise UserError(
            f"--batch-size: a batch of one image of {config.image_size}×{config.image_size} leaves batch norm a single "
            f"value ({error}); expected batches of at least 2 images, or a larger --image-size"
        ) from error


def _told(value: object) -> str:
    return some([str(each) for each in value]) if isinstance(value, list) else str(value)
