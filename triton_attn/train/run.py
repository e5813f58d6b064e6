"""``triton-attn train``: a run from its first epoch to its last, or from where it was killed."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from . import foreign, options
from .atomic import check_writable, recover_folder
from .config import Config
from .data import load_images
from .describe import best_of, describe_run
from .epochs import run_epochs, stopped_early
from .lock import locked
from .log import Log
from .network import build_network, make_card, serve
from .recipes import freeze_backbone
from .refusals import describe_images, refuse_lone_images, refuse_other_data
from .runtime import check_amp, is_main, seed_everything, start
from .state import FOLDER, read_history

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
    accelerator = start(config.amp, config.accumulate)
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
    images = load_images(config.data, config.val_fraction, config.check_images, main, config.train_fraction)
    if dataset is not None:
        refuse_other_data(config, images, dataset)

    seed_everything(config.seed, 0, 0)  # the weights start the same in every process
    card = make_card(config, images)
    # A state that is loaded has all weights: the file that they came from may be gone by then.
    model, note = build_network(card, None if history else config.weights)
    if config.freeze == "backbone":
        freeze_backbone(model)
    served = serve(model) if foreign.is_foreign(config.model) else None
    refuse_lone_images(config, model, len(images.train), accelerator.num_processes)
    say(describe_run(config, images, model, accelerator))
    for words in (served, note):
        if words:
            say(words)
    if main and dataset is None:
        output.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(output))
        options.refuse_other_run(output)  # which may have begun and ended while the images were looked at
        config.save(describe_images(images))
    early = stopped_early(config, history)
    if early or len(history) >= config.epochs:
        if main:
            Log(output, history).close()
        done = early or f"all {config.epochs} epochs are done"
        say(f"{output}: {done}, nothing is left to resume ({best_of(history)})")
        return None
    run_epochs(config, accelerator, model, card, images, history, dataset)
    return model
