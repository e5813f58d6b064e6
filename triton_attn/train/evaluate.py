"""``triton-attn eval``: how good a checkpoint is, and what it takes for what."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from .atomic import check_writable
from .checkpoint import Card, open_checkpoint
from .config import FILE, OPTIONS, Config, load_config
from .data import ImageSet, Sample, load_images, val_loader
from .describe import describe_left_out
from .errors import UserError, as_user_error
from .folder import some
from .loop import validate
from .plots import draw_confusion
from .rules import whole
from .runtime import check_amp, start
from .transforms import eval_transform
from .values import check_paths

PICTURE = "confusion.png"
BY_CLASS = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``eval``."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a .safetensors file, or the folder of a run (its best weights)",
    )
    parser.add_argument(
        "--data",
        metavar="digits | DIR",
        help="as for train (default: what the run was trained on, else digits)",
    )
    parser.add_argument(
        "--split",
        choices=("val", "all"),
        default="val",
        help="val/ of a folder, or the part that training holds out; or all images there are (default: val)",
    )
    parser.add_argument(
        "--val-fraction",
        type=OPTIONS["val_fraction"].words(float),
        metavar="F",
        help="the share that is held out (default: as in training)",
    )
    parser.add_argument(
        "--batch-size", type=whole(1).words(int), default=64, metavar="N", help="per process (default: 64)"
    )
    parser.add_argument(
        "--workers", type=whole(0).words(int), default=0, metavar="N", help="processes that load images"
    )
    parser.add_argument("--amp", choices=("bf16", "fp16", "no"), default="no", help="mixed precision (default: no)")
    parser.add_argument(
        "--output",
        metavar="PNG | DIR",
        help=f"for the confusion matrix (default: {PICTURE} beside the checkpoint)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object in place of words: loss, accuracies, the confusion matrix, and of every class its "
        "precision, recall and F1",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as the command line says; returns the exit status."""
    check_paths(arguments)
    check_amp(arguments.amp)
    file, model, card = open_checkpoint(arguments.checkpoint)
    picture = picture_path(arguments.output, file)
    check_writable(picture.parent)
    trained = load_config(file.parent)[0] if (file.parent / FILE).is_file() else Config()
    data = arguments.data or trained.data
    images = load_images(data, arguments.val_fraction or trained.val_fraction, progress=True)
    samples = [*images.train, *images.val] if arguments.split == "all" else list(images.val)
    samples = relabel(samples, images.classes, card, data)

    accelerator = start(arguments.amp)
    look = eval_transform(card.eval_image_size, card.mean, card.std, card.crop_fraction)
    dataset = ImageSet(samples, look, card.mode)
    model, loader = accelerator.prepare(model, val_loader(dataset, arguments.batch_size, arguments.workers))
    classes = card.num_classes
    accuracies = {f"top-{few}": few for few in (1, 5) if few < classes or few == 1}
    metrics = {
        **{
            name: MulticlassAccuracy(classes, average="micro", top_k=few, sync_on_compute=False)
            for name, few in accuracies.items()
        },
        "confusion": MulticlassConfusionMatrix(classes, sync_on_compute=False),
        **{name: kind(classes, average="none", sync_on_compute=False) for name, kind in BY_CLASS.items()},
    }
    metrics = {name: metric.to(accelerator.device) for name, metric in metrics.items()}
    loss = validate(accelerator, model, loader, metrics=metrics, label=str(file))
    values = {name: metric.compute().cpu() for name, metric in metrics.items()}
    rates = {name: f"{name} {100 * values[name].item():.2f} %" for name in accuracies}
    if arguments.json:
        found = {"checkpoint": str(file), "epoch": card.epoch, "data": data, "split": arguments.split}
        accelerator.print(
            json.dumps({**found, "images": len(samples), "loss": loss, **as_fields(values, card.classes)})
        )
    say: Callable[[str], None] = (lambda _: None) if arguments.json else accelerator.print
    what = f"all {len(samples)} images" if arguments.split == "all" else f"the {len(samples)} held-out images"
    say(f"{file} ({card.model}, epoch {card.epoch}) on {what} of {data}")
    say(f"{describe_left_out(images)}{'   '.join(rates.values())}   loss {loss:.4f}")
    if accelerator.is_main_process:
        title = f"{card.model}, {len(samples)} images, {rates['top-1']}"
        with as_user_error(OSError, prefix="--output: cannot be written: "):
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw_confusion(picture, values["confusion"], card.classes, title)
    say(f"confusion matrix: {picture}")
    accelerator.end_training()
    return 0


def as_fields(values: Mapping[str, Tensor], classes: Sequence[str]) -> dict[str, Any]:
    """The metrics as what JSON has.

    Returns:
        Accuracies 0 to 1 (``top_1``), ``confusion`` (a row for every true class), and ``classes`` with ``name``,
        ``images``, ``precision``, ``recall`` and ``f1`` of each, which are 0 where there is nothing to count.
    """
    counts = values["confusion"]
    rows = [
        {"name": name, "images": int(counts[index].sum())} | {key: values[key][index].item() for key in BY_CLASS}
        for index, name in enumerate(classes)
    ]
    accuracies = {key.replace("-", "_"): value.item() for key, value in values.items() if key.startswith("top-")}
    return {**accuracies, "classes": rows, "confusion": counts.tolist()}


def picture_path(output: str | None, file: Path) -> Path:
    """Where the picture goes: ``--output`` as a PNG or a folder, or beside the checkpoint."""
    if output is None:
        return file.with_name(PICTURE)
    path = Path(output)
    if path.suffix and not path.is_dir():
        if path.suffix.lower() != ".png":
            raise UserError(f"--output: {output} ends in {path.suffix}, expected a .png file or a folder")
        return path
    return path / PICTURE


def relabel(samples: list[Sample], classes: tuple[str, ...], card: Card, data: str) -> list[Sample]:
    """The samples with the labels that the checkpoint has for their classes.

    Raises:
        UserError: classes that the checkpoint does not know.
    """
    strange = [name for name in classes if name not in card.classes]
    if strange:
        raise UserError(
            f"--data: {data} has classes that the checkpoint does not know: {some(strange)}; expected some of "
            f"{some(card.classes)}"
        )
    label = {index: card.classes.index(name) for index, name in enumerate(classes)}
    return [(image, label[index]) for image, index in samples]
