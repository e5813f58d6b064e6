"""``triton-attn train``: a run from its first epoch to its last, or from where it was killed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from . import options
from .atomic import check_writable, recover_folder
from .checkpoint import Card, cpu_state, save_model
from .config import Config
from .data import Images, ImageSet, eval_transform, load_images, train_loader, train_transform, val_loader
from .describe import best_of, describe_epoch, describe_extension, describe_run
from .lock import locked
from .log import Log, Row
from .loop import NotFinite, train_epoch, validate
from .network import build_network, make_card
from .optim import make_optimizer, make_schedule
from .refusals import describe_images, refuse_lone_images, refuse_other_data
from .runtime import check_amp, is_main, seed_everything, start
from .state import FOLDER, State, read_history

add_arguments = options.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Train as the command line says; returns the exit status."""
    config, dataset = options.resolve(arguments)
    train(config, dataset)
    return 0


def train(config: Config, dataset: dict[str, Any] | None = None) -> nn.Module | None:
    """Train a network and write the run into ``config.output``.

    Every epoch starts from the seed, its number and the saved state alone, so that one that is begun again gives the
    same weights, bit for bit on a CPU.

    Args:
        config: resolved.
        dataset: of a run that is resumed, what ``config.yaml`` says about its data.

    Returns:
        The trained network, or None if there was nothing left to do.

    Raises:
        UserError: something about the options, the data or the files; nothing is written before all are checked.
        NotFinite: the loss became NaN or infinite; the last good checkpoint stays.
    """
    output = Path(config.output)
    check_amp(config.amp)
    if is_main():
        check_writable(output)
    accelerator = start(config.amp)
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process and dataset is not None:
            stack.enter_context(locked(output))
            recover_folder(output / FOLDER)
        accelerator.wait_for_everyone()
        model = _train(config, dataset, accelerator, stack)
        accelerator.end_training()
    return model


def _train(
    config: Config, dataset: dict[str, Any] | None, accelerator: Accelerator, stack: contextlib.ExitStack
) -> nn.Module | None:
    """As :func:`train`; a run that begins takes its folder, until ``stack`` ends, once all else is checked."""
    output, main = Path(config.output), accelerator.is_main_process
    say: Callable[[str], None] = accelerator.print
    history = read_history(output) if dataset is not None else []
    images = load_images(config.data, config.val_fraction, config.check_images, progress=main)
    if dataset is not None:
        refuse_other_data(config, images, dataset)

    seed_everything(config.seed, 0, 0)  # the weights start the same in every process
    card = make_card(config, images)
    # A state that is loaded has all weights: the file that they came from may be gone by then.
    model, note = build_network(card, None if history else config.weights)
    refuse_lone_images(config, model, len(images.train), accelerator.num_processes)
    say(describe_run(config, images, model, accelerator))
    if note:
        say(note)
    if main and dataset is None:
        output.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(output))
        options.refuse_other_run(output)  # which may have begun and ended while the images were looked at
        config.save(describe_images(images))
    if len(history) >= config.epochs:
        if main:
            Log(output, history).close()
        say(f"{output}: all {config.epochs} epochs are done, nothing is left to resume ({best_of(history)})")
        return None
    epochs(config, accelerator, model, card, images, history, dataset)
    return model


def epochs(
    config: Config,
    accelerator: Accelerator,
    model: nn.Module,
    card: Card,
    images: Images,
    history: list[Row],
    dataset: dict[str, Any] | None,
) -> None:
    """The epochs that are left; arguments as in :func:`train`."""
    output, classes, say = Path(config.output), card.num_classes, accelerator.print
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    size, workers, batch = card.image_size, config.workers or 0, config.batch_size
    train_set = ImageSet(images.train, train_transform(images.kind, size, card.mean, card.std))
    val_set = ImageSet(images.val, eval_transform(size, card.mean, card.std))
    loader = train_loader(train_set, batch, workers, config.seed, accelerator.num_processes)
    sampler = loader.sampler
    model = model.to(memory_format=layout)
    if config.compile:
        model.compile()  # in place: the keys of the weights stay as they are
    bare = model
    model, optimizer, loader, held_out = accelerator.prepare(
        model, make_optimizer(config, model.parameters()), loader, val_loader(val_set, batch, workers)
    )
    state = State(bare, optimizer.optimizer, accelerator.scaler)
    if history:
        before, now = state.load(output), accelerator.num_processes
        say(f"resumed {output} after epoch {len(history)} ({best_of(history)})")
        if before != now:
            say(f"{now} instead of {before} processes: a step is of {now * batch} images, not of {before * batch}")
    if config.schedule_from is None:  # it goes on for longer than was planned
        config = dataclasses.replace(config, schedule_from=len(history))
        say(describe_extension(config))
        if accelerator.is_main_process:
            config.save(dataset or {})
    scheduler = make_schedule(config, optimizer.optimizer, len(loader), len(history))
    metrics = {"accuracy": MulticlassAccuracy(classes, average="micro", sync_on_compute=False).to(accelerator.device)}

    # Only one process reports, but all keep the history.
    log = Log(output, history) if accelerator.is_main_process else None
    try:
        for epoch in range(len(history) + 1, config.epochs + 1):
            start_time, label = time.perf_counter(), f"epoch {epoch}/{config.epochs}"
            seed_everything(config.seed, epoch, accelerator.process_index)
            sampler.epoch = epoch  # type: ignore[attr-defined]
            trained = train_epoch(
                accelerator, model, loader, optimizer, scheduler, classes=classes, layout=layout, label=label
            )
            metrics["accuracy"].reset()
            val_loss = validate(accelerator, model, held_out, metrics=metrics, layout=layout, label=f"{label} held out")
            if not math.isfinite(val_loss):
                raise NotFinite(f"{label}, step {len(loader)}: the held-out loss is {val_loss}, expected a number")
            accuracy = metrics["accuracy"].compute().item()
            best = accuracy > max((row["val_accuracy"] for row in history), default=-1.0)
            row: Row = {
                "epoch": epoch,
                "train_loss": trained.loss,
                "train_accuracy": trained.accuracy,
                "val_loss": val_loss,
                "val_accuracy": accuracy,
                "lr": trained.lr,
                "images_per_second": trained.images_per_second,
                "seconds": time.perf_counter() - start_time,
                "time": time.time(),
            }
            history = [*history, row]
            if accelerator.is_main_process:
                weights, mine = cpu_state(bare), dataclasses.replace(card, epoch=epoch, val_accuracy=accuracy)
                for name in ("best", "last") if best else ("last",):
                    save_model(output / f"{name}.safetensors", weights, mine)
                # The state comes last: until it is saved, the epoch counts as not done and will be done again.
                state.save(output, history, accelerator.num_processes)
            if log:
                log.add(row)
            say(describe_epoch(row, config.epochs, best))
    except NotFinite as error:
        kept = f"{output} keeps the state after epoch {len(history)}" if history else "no epoch was completed"
        raise NotFinite(f"{error}; {kept}. Try a lower --lr, a longer --warmup-epochs, or --amp no") from None
    finally:
        if log:
            log.close()
    say(f"done: {best_of(history)}, {output / 'best.safetensors'}")
