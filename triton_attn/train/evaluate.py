"""``triton-attn eval``: how good a checkpoint is, and what it takes for what."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from .atomic import check_writable
from .checkpoint import Card, find_weights, load_model
from .config import FILE, Config, load_config
from .data import ImageSet, Sample, eval_transform, load_images, val_loader
from .errors import UserError
from .folder import some
from .loop import validate
from .plots import draw_confusion
from .runtime import check_amp, start
from .values import at_least, between

PICTURE = "confusion.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``eval``."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .safetensors file, or the folder of a run (its best weights)"
    )
    parser.add_argument(
        "--data", metavar="digits | DIR", help="as for train (default: what the run was trained on, else digits)"
    )
    parser.add_argument(
        "--split",
        choices=("val", "all"),
        default="val",
        help="val/ of a folder, or the part that training holds out; or all images there are (default: val)",
    )
    parser.add_argument(
        "--val-fraction", type=between(0, 1), metavar="F", help="the share that is held out (default: as in training)"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="per process (default: 64)")
    parser.add_argument("--workers", type=at_least(0), default=0, metavar="N", help="processes that load images")
    parser.add_argument("--amp", choices=("bf16", "fp16", "no"), default="no", help="mixed precision (default: no)")
    parser.add_argument(
        "--output", metavar="PNG | DIR", help=f"for the confusion matrix (default: {PICTURE} beside the checkpoint)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as the command line says; returns the exit status."""
    check_amp(arguments.amp)
    file = find_weights(arguments.checkpoint)
    model, card = load_model(file)
    picture = picture_path(arguments.output, file)
    check_writable(picture.parent)
    trained = load_config(file.parent)[0] if (file.parent / FILE).is_file() else Config()
    data = arguments.data or trained.data
    images = load_images(data, arguments.val_fraction or trained.val_fraction, progress=True)
    samples = [*images.train, *images.val] if arguments.split == "all" else list(images.val)
    samples = relabel(samples, images.classes, card, data)

    accelerator = start(arguments.amp)
    dataset = ImageSet(samples, eval_transform(card.image_size, card.mean, card.std))
    model, loader = accelerator.prepare(model, val_loader(dataset, arguments.batch_size, arguments.workers))
    few, classes = min(5, card.num_classes), card.num_classes
    metrics = {
        "top-1": MulticlassAccuracy(classes, average="micro", sync_on_compute=False),
        "top-5": MulticlassAccuracy(classes, average="micro", top_k=few, sync_on_compute=False),
        "confusion": MulticlassConfusionMatrix(classes, sync_on_compute=False),
    }
    metrics = {name: metric.to(accelerator.device) for name, metric in metrics.items()}
    loss = validate(accelerator, model, loader, metrics=metrics, label=str(file))
    top1, top5 = (100 * metrics[name].compute().item() for name in ("top-1", "top-5"))
    what = f"all {len(samples)} images" if arguments.split == "all" else f"the {len(samples)} held-out images"
    accelerator.print(f"{file} ({card.model}, epoch {card.epoch}) on {what} of {data}")
    accelerator.print(f"top-1 {top1:.2f} %   top-5 {top5:.2f} %   loss {loss:.4f}")
    if accelerator.is_main_process:
        picture.parent.mkdir(parents=True, exist_ok=True)
        title = f"{card.model}, {len(samples)} images, top-1 {top1:.2f} %"
        draw_confusion(picture, metrics["confusion"].compute().cpu(), card.classes, title)
    accelerator.print(f"confusion matrix: {picture}")
    accelerator.end_training()
    return 0


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
