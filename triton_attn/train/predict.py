"""``triton-attn predict``: what a checkpoint takes images for that nobody has labelled."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..files import write_bytes
from .atomic import check_writable
from .checkpoint import Card, open_checkpoint
from .data import ImageSet, val_loader
from .errors import UserError, as_user_error
from .folder import KINDS, find_broken
from .loop import progress
from .rules import whole
from .runtime import check_amp, start
from .transforms import eval_transform
from .values import check_paths
from .walk import Walk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``predict``."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .safetensors file, or the folder of a run (its best weights)"
    )
    parser.add_argument(
        "images", metavar="FOLDER | IMAGE", nargs="+", help="image files, and folders of images at any depth"
    )
    parser.add_argument(
        "--output",
        metavar="CSV",
        default="predictions.csv",
        help="the file to write or replace: name, class, and the probability of every class (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=whole(1).words(int), default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--workers", type=whole(0).words(int), default=0, metavar="N", help="processes that load images"
    )
    parser.add_argument("--amp", choices=("bf16", "fp16", "no"), default="no", help="mixed precision (default: no)")


def run(arguments: argparse.Namespace) -> int:
    """Predict as the command line says; returns the exit status.

    Raises:
        UserError: something about the arguments or the files, named; no file is written then.
    """
    check_paths(arguments)
    check_amp(arguments.amp)
    output = Path(arguments.output)
    if os.path.isdir(output):
        raise UserError(f"--output: {output} is a folder; expected the name of a .csv file")
    check_writable(output.parent)
    file, model, card = open_checkpoint(arguments.checkpoint)
    named = list(find_images(arguments.images))
    accelerator = start(arguments.amp)
    main = accelerator.is_main_process
    broken = find_broken([path for _, path in named], progress=main)
    for path, why in broken.items() if main else ():
        print(f"warning: {path} is left out: it cannot be read ({why})", file=sys.stderr)
    named = [(name, path) for name, path in named if path not in broken]
    if not named:
        raise UserError(f"IMAGE: none of {len(broken)} images can be read")
    look = eval_transform(card.eval_image_size, card.mean, card.std, card.crop_fraction)
    images = ImageSet([(path, 0) for _, path in named], look, card.mode)
    loader = val_loader(images, arguments.batch_size, arguments.workers)
    probabilities = predict(accelerator, model, loader, str(file))
    if main:
        with as_user_error(OSError, prefix="--output: cannot be written: "):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(output, as_csv([name for name, _ in named], probabilities, card))
    counts = torch.bincount(probabilities.argmax(1), minlength=card.num_classes).tolist()
    found = ", ".join(f"{count} {name}" for name, count in zip(card.classes, counts, strict=True) if count)
    accelerator.print(f"{output}: {len(named)} images, {found}")
    accelerator.end_training()
    return 0


def find_images(sources: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The images that arguments name, with what to call them: as given, or from its folder on.

    Raises:
        UserError: no such file, or a folder without images.
    """
    for source in sources:
        path = Path(source)
        if os.path.isdir(path):
            walk = Walk(path, "IMAGE")
            found = walk.images(path)
            if not found:
                left = walk.summary()
                raise UserError(f"IMAGE: {path} holds no images; {KINDS}" + (f". Left out: {left}" if left else ""))
            yield from ((str(image.relative_to(path)), image) for image in found)
        elif os.path.isfile(path):
            yield source, path
        else:
            what = "it is no file" if os.path.exists(path) else "no such file"
            raise UserError(f"IMAGE: {source}: {what}; expected an image file or a folder of images")


@torch.no_grad()
def predict(accelerator: Accelerator, model: nn.Module, loader: DataLoader, label: str) -> Tensor:
    """The probabilities ``(N, classes)`` of all images, in order, in float32 on the CPU."""
    model, batches = accelerator.prepare(model.eval(), loader)
    found = []
    with progress(accelerator, batches, label) as bar:
        for images, _ in batches:
            logits = accelerator.gather_for_metrics(model(images))
            found.append(torch.softmax(logits.float(), 1).cpu())
            bar.update(len(logits))
    return torch.cat(found)


def as_csv(names: Sequence[str], probabilities: Tensor, card: Card) -> bytes:
    """A table of ``name``, ``class`` and ``p(CLASS)`` for every class; bytes that are no letters become escapes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "class", *(f"p({name})" for name in card.classes)])
    for name, row in zip(names, probabilities, strict=True):
        table.writerow([name, card.classes[int(row.argmax())], *(f"{value:.6g}" for value in row.tolist())])
    return text.getvalue().encode("utf-8", "backslashreplace")
