"""What a run says about itself in words."""

from __future__ import annotations

import dataclasses

from accelerate import Accelerator
from torch import nn

from .config import RECIPE, Config
from .data import Images
from .log import Row


def describe_run(config: Config, images: Images, model: nn.Module, accelerator: Accelerator) -> str:
    """What is about to be trained, on what."""
    attention = "no attention"
    if isinstance(config.attention, dict):
        attention = ", ".join(f"{name} at {site}" for site, name in config.attention.items())
    elif config.attention is not None:
        attention = f"{config.attention} at {', '.join(config.where)}"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{config.model} with {attention}: {millions:.2f} M parameters\n"
        f"{config.data}: {len(images.train)} images to train on, {len(images.val)} held out, {len(images.classes)} "
        f"classes, {config.image_size}×{config.image_size}\n"
        f"{describe_recipe(config)}"
        f"{describe_left_out(images)}"
        f"{accelerator.num_processes} × {accelerator.device.type}, mixed precision: {config.amp}"
    )


def describe_recipe(config: Config) -> str:
    """The options of the recipe that are not as by default, in a line; nothing if all are."""
    default = dataclasses.replace(Config(), eval_image_size=config.image_size)
    names = [name for name in RECIPE if getattr(config, name) != getattr(default, name)]
    words = [f"{name.replace('_', ' ')} {getattr(config, name)}" for name in names]
    return f"recipe: {', '.join(words)}\n" if words else ""


def describe_left_out(images: Images) -> str:
    """What was left out of a folder, in a line; nothing if nothing was."""
    return f"left out: {images.left_out}\n" if images.left_out else ""


def describe_extension(config: Config) -> str:
    """How a run goes on for longer than it was planned."""
    return (
        f"{config.epochs} epochs from now on: the schedule is made anew behind epoch {config.schedule_from}, with a "
        f"warm-up to {config.lr:g} and a cosine down to zero"
    )


def describe_epoch(row: Row, epochs: int, best: bool) -> str:
    """An epoch in a line."""
    average = f"of the average {100 * row['ema_accuracy']:.2f} %  " if "ema_accuracy" in row else ""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {row['train_loss']:.4f}  held-out loss {row['val_loss']:.4f}  "
        f"accuracy {100 * row['val_accuracy']:.2f} %  {average}"
        f"{row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s" + ("  (best)" if best else "")
    )


def best_of(history: list[Row]) -> str:
    """The best epoch in words."""
    best = max(history, key=lambda row: (row["val_accuracy"], -row["epoch"]))
    words = f"best held-out accuracy {100 * best['val_accuracy']:.2f} % at epoch {best['epoch']}"
    if "ema_accuracy" in best:
        best = max(history, key=lambda row: (row["ema_accuracy"], -row["epoch"]))
        words += f", of the average {100 * best['ema_accuracy']:.2f} % at epoch {best['epoch']}"
    return words
