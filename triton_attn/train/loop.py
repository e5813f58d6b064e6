"""One epoch of training, one pass of validation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from .errors import UserError
from .optim import Schedule
from .recipes import Recipe


class NotFinite(UserError):
    """The loss is NaN or infinite."""

    alone = True


@dataclass(frozen=True)
class Trained:
    """Means over an epoch: loss, accuracy (0 to 1), and images per second over all processes; the last step's rate."""

    loss: float
    accuracy: float
    lr: float
    images_per_second: float


def train_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Any,
    optimizer: Any,
    scheduler: Schedule,
    *,
    recipe: Recipe,
    classes: int,
    layout: torch.memory_format,
    label: str,
) -> Trained:
    """Go through the training images once.

    Args:
        model, loader, optimizer: as ``accelerator.prepare`` gave them.
        scheduler: stepped with every optimizer step.
        recipe: the loss, and what else belongs to a step.
        classes: the number of classes.
        layout: the memory format of the images.
        label: what the progress bar says.

    Raises:
        NotFinite: the loss became NaN or infinite; the message says at which step.
    """
    model.train()
    for norm in recipe.frozen:
        norm.eval()
    # NaN must reach the mean; torchmetrics 1.9 ignores weights then, so it is given one loss per image.
    mean = MeanMetric(nan_strategy="disable").to(accelerator.device)
    accuracy = MulticlassAccuracy(classes, average="micro").to(accelerator.device)
    before: Tensor | None = None
    lr, seen, start = 0.0, 0, time.perf_counter()
    with progress(accelerator, loader, label) as bar:
        for step, (images, labels) in enumerate(loader, 1):
            images, wanted = (images, labels) if recipe.mix is None else recipe.mix(images, labels)
            with accelerator.accumulate(model):  # between two steps of the optimizer, these two wait
                logits = model(images.to(memory_format=layout))
                loss = recipe.loss(logits, wanted)
                accelerator.backward(loss)
                if accelerator.sync_gradients and recipe.clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                lr = scheduler.now
                scheduler.step()  # whether or not the scaler of fp16 left the step out: the rate goes by the epoch
                if recipe.after_step is not None:
                    recipe.after_step()
            # The loss of the step before is known by now: to look at this one's would make the GPU wait for us.
            if before is not None:
                bar.set_postfix(loss=f"{check_finite(before, label, step - 1):.3f}", refresh=False)
            before = loss.detach()
            mean.update(before.expand(len(labels)))
            accuracy.update(logits.detach(), labels)
            seen += len(labels) * accelerator.num_processes
            bar.update(len(labels) * accelerator.num_processes)
        if before is not None:
            check_finite(before, label, step)
    seconds = time.perf_counter() - start
    return Trained(mean.compute().item(), accuracy.compute().item(), lr, seen / seconds)


@torch.no_grad()
def validate(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Any,
    *,
    metrics: dict[str, Any],
    layout: torch.memory_format = torch.contiguous_format,
    label: str,
) -> float:
    """Go through the held-out images once: updates ``metrics`` with logits and labels, returns the mean loss.

    Every process sees the results of all, and no image counts twice: the metrics must not synchronise again
    (``sync_on_compute=False``).
    """
    model.eval()
    mean = MeanMetric(nan_strategy="disable", sync_on_compute=False).to(accelerator.device)
    with progress(accelerator, loader, label) as bar:
        for images, labels in loader:
            logits = model(images.to(memory_format=layout))
            logits, labels = accelerator.gather_for_metrics((logits, labels))
            mean.update(F.cross_entropy(logits.float(), labels, reduction="none"))
            for metric in metrics.values():
                metric.update(logits, labels)
            bar.update(len(labels))
    return mean.compute().item()


def check_finite(loss: Tensor, label: str, step: int) -> float:
    """The loss as a number.

    Raises:
        NotFinite: it is none.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise NotFinite(f"{label}, step {step}: the training loss is {value}, expected a number")
    return value


def progress(accelerator: Accelerator, loader: Any, label: str) -> tqdm[Any]:
    """A bar that counts images and goes away at the end; none in other processes or where stderr is no terminal."""
    hidden = None if accelerator.is_main_process else True
    return tqdm(total=loader.total_dataset_length, desc=label, unit="img", leave=False, disable=hidden)
