"""The epochs of a run: train, evaluate, save, report, until there are enough or the held-out accuracy stays."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from .checkpoint import Card, cpu_state, save_model
from .config import Config
from .data import Images, ImageSet, train_loader, val_loader
from .describe import best_of, describe_epoch, describe_extension
from .ema import Average
from .log import Log, Row
from .loop import NotFinite, train_epoch, validate
from .optim import make_optimizer, make_schedule
from .recipes import make_recipe, parameter_groups
from .recompute import recompute_blocks
from .runtime import seed_everything
from .state import State
from .transforms import eval_transform, train_transform

ACCURACIES = ("val_accuracy", "ema_accuracy")


def run_epochs(
    config: Config,
    accelerator: Accelerator,
    model: nn.Module,
    card: Card,
    images: Images,
    history: list[Row],
    dataset: dict[str, Any] | None,
) -> None:
    """The epochs that are left.

    Args:
        config: resolved.
        accelerator: where it runs.
        model: the network, frozen where it is to be; trained in place.
        card: of the checkpoints.
        images: what there is to train on and to check with.
        history: the epochs that the run has behind it.
        dataset: of a run that is resumed, what ``config.yaml`` says about its data.

    Raises:
        UserError: the state of the run cannot be read.
        NotFinite: a loss is none; the last good checkpoint stays.
    """
    output, say = Path(config.output), accelerator.print
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    look = train_transform(
        images.kind, card.image_size, card.mean, card.std, config.auto_augment, config.random_erasing
    )
    look_on = eval_transform(card.eval_image_size, card.mean, card.std, card.crop_fraction)
    train_set, val_set = ImageSet(images.train, look, card.mode), ImageSet(images.val, look_on, card.mode)
    batch, workers, processes = config.batch_size, config.workers or 0, accelerator.num_processes
    loader = train_loader(train_set, batch, workers, config.seed, processes)
    sampler = loader.sampler
    model = model.to(memory_format=layout)
    # A copy of the network as it is: neither compiled nor on several processes, which wrap its forward.
    average = None if config.ema is None else Average(model, config.ema).to(accelerator.device)
    if config.grad_checkpointing:
        recompute_blocks(model)
    if config.compile:
        model.compile()  # in place: the keys of the weights stay as they are
    bare = model
    model, optimizer, loader, held_out = accelerator.prepare(
        model, make_optimizer(config, parameter_groups(config, bare)), loader, val_loader(val_set, batch, workers)
    )
    state = State(bare, optimizer.optimizer, accelerator.scaler, average)
    if history:
        before = state.load(output)
        say(f"resumed {output} after epoch {len(history)} ({best_of(history)})")
        if before != processes:
            now, then = (count * batch * config.accumulate for count in (processes, before))
            say(f"{processes} instead of {before} processes: a step is of {now} images, not of {then}")
    if config.schedule_from is None:  # it goes on for longer than was planned
        config = dataclasses.replace(config, schedule_from=len(history))
        say(describe_extension(config))
        if accelerator.is_main_process:
            config.save(dataset or {})
    steps = math.ceil(len(loader) / config.accumulate)
    scheduler = make_schedule(config, optimizer.optimizer, steps, len(history))
    networks = {"val_accuracy": ("", bare)}
    if average is not None:
        networks["ema_accuracy"] = ("-ema", average.module)
    follow = None if average is None else lambda: average.update_parameters(bare)
    recipe = make_recipe(config, images.train, card.num_classes, bare, accelerator.device, follow)
    accuracy = MulticlassAccuracy(card.num_classes, average="micro", sync_on_compute=False).to(accelerator.device)

    def look_at(network: nn.Module, label: str) -> tuple[float, float]:
        """The loss and the accuracy of a network on the held-out images."""
        accuracy.reset()
        with accelerator.autocast():
            loss = validate(
                accelerator, network, held_out, metrics={"accuracy": accuracy}, layout=layout, label=f"{label} held out"
            )
        if not math.isfinite(loss):
            raise NotFinite(f"{label}, step {len(loader)}: the held-out loss is {loss}, expected a number")
        return loss, accuracy.compute().item()

    # Only one process reports, but all keep the history.
    log = Log(output, history) if accelerator.is_main_process else None
    try:
        for epoch in range(len(history) + 1, config.epochs + 1):
            start_time, label = time.perf_counter(), f"epoch {epoch}/{config.epochs}"
            seed_everything(config.seed, epoch, accelerator.process_index)
            sampler.epoch = epoch  # type: ignore[attr-defined]
            trained = train_epoch(
                accelerator,
                model,
                loader,
                optimizer,
                scheduler,
                recipe=recipe,
                classes=card.num_classes,
                layout=layout,
                label=label,
            )
            val_loss, val_accuracy = look_at(model, label)
            row: Row = {
                "epoch": epoch,
                "train_loss": trained.loss,
                "train_accuracy": trained.accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": trained.lr,
                "images_per_second": trained.images_per_second,
            }
            if average is not None:
                average.agree()
                row["ema_loss"], row["ema_accuracy"] = look_at(average, label)
            row |= {"seconds": time.perf_counter() - start_time, "time": time.time()}
            best = {name: row[name] > best_until(history, name) for name in networks}
            history = [*history, row]
            if accelerator.is_main_process:
                for name, (suffix, network) in networks.items():
                    mine = dataclasses.replace(card, epoch=epoch, val_accuracy=row[name])
                    save_weights(output, suffix, network, mine, best[name])
                # The state comes last: until it is saved, the epoch counts as not done and will be done again.
                state.save(output, history, processes)
            if log:
                log.add(row)
            say(describe_epoch(row, config.epochs, best["val_accuracy"]))
            early = stopped_early(config, history)
            if early:
                say(early)
                break
    except NotFinite as error:
        kept = f"{output} keeps the state after epoch {len(history)}" if history else "no epoch was completed"
        raise NotFinite(f"{error}; {kept}. Try a lower --lr, a longer --warmup-epochs, or --amp no") from None
    finally:
        if log:
            log.close()
    say(f"done: {best_of(history)}, {output / 'best.safetensors'}")


def save_weights(output: Path, suffix: str, network: nn.Module, card: Card, best: bool) -> None:
    """Save a network's weights as the last, and if they are, as the best."""
    weights = cpu_state(network)
    for name in ("best", "last") if best else ("last",):
        save_model(output / f"{name}{suffix}.safetensors", weights, card)


def best_until(history: Sequence[Row], name: str) -> float:
    """The best accuracy of the epochs so far; less than any if there are none."""
    return max((row[name] for row in history), default=-1.0)


def stopped_early(config: Config, history: Sequence[Row]) -> str | None:
    """Why no epoch follows by ``--early-stop``, in words: neither accuracy has risen for so many epochs; else None.

    Where a run goes on for longer than it was planned, these are counted from there.
    """
    if config.early_stop is None or config.schedule_from is None or not history:
        return None
    rose = max(max(history, key=lambda row: row[name])["epoch"] for name in ACCURACIES if name in history[0])
    waited = len(history) - max(rose, config.schedule_from)
    if waited < config.early_stop:
        return None
    return f"stopped early: for {waited} epochs no held-out accuracy has been above that of epoch {rose}"
