"""The options of ``triton-attn train``, and how they meet the configuration of a run that is resumed."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from .config import FILE, OPTIONS, Config, load_config
from .errors import UserError, as_user_error
from .recipe_options import add_image_options, add_recipe_options
from .values import KeyValues, check_paths, parse_attention

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MAY_CHANGE = ("output", "workers", "check_images")
"""What may differ when a run goes on, because no number depends on it."""

WEIGHTS = ("best.safetensors", "last.safetensors", "best-ema.safetensors", "last-ema.safetensors")
OWN_FILES = (FILE, "metrics.csv", *WEIGHTS, "curves.png", "last", "tensorboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``; those that are not given leave no trace, so that defaults live in Config."""
    parser.argument_default = argparse.SUPPRESS
    default = Config()
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model", metavar="NAME", help=f"{', '.join(MODELS)}, or timm/NAME (default: {default.model})"
    )
    network.add_argument(
        "--attention",
        type=parse_attention,
        metavar="NAME | SITE=NAME,...",
        help="a block at the sites of --where, or one per site (layer3=nonlocal,block=se), or none (default: none)",
    )
    network.add_argument(
        "--where",
        nargs="+",
        metavar="SITE",
        help="stem, layer1 … layer4, block: where the block goes "
        f"(default: {' '.join(default.where)}); in a network of timm paths of modules, such as 'layer[34].*.bn2'",
    )
    network.add_argument(
        "--attention-kwargs",
        nargs="+",
        metavar="KEY=VALUE",
        action=KeyValues,
        help="arguments of the blocks, such as reduction=8",
    )
    network.add_argument(
        "--weights",
        metavar="FILE | NAME",
        help="start from a .safetensors or .pth file, or torchvision's by name",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="digits | DIR",
        help="scikit-learn's bundled digits, or a folder: train/ and val/ with a folder of images per class in each, "
        "or a folder per class (default: digits)",
    )
    data.add_argument(
        "--val-fraction",
        type=OPTIONS["val_fraction"].words(float),
        metavar="F",
        help=f"the share that is held out where there is no val/ (default: {default.val_fraction})",
    )
    data.add_argument(
        "--image-size",
        type=OPTIONS["image_size"].words(int),
        metavar="PIXELS",
        help="default: 48 for digits, 224 for a folder",
    )
    data.add_argument(
        "--workers",
        type=OPTIONS["workers"].words(int),
        metavar="N",
        help="processes that load images (default: 0 for digits, else 4)",
    )
    data.add_argument(
        "--check-images",
        action=argparse.BooleanOptionalAction,
        help="decode every image of a folder before training, to find broken ones (default: yes)",
    )
    add_image_options(data)

    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs",
        type=OPTIONS["epochs"].words(int),
        metavar="N",
        help=f"default: {default.epochs}; with --resume, more than before go on with the run",
    )
    training.add_argument(
        "--batch-size",
        type=OPTIONS["batch_size"].words(int),
        metavar="N",
        help=f"per process (default: {default.batch_size})",
    )
    training.add_argument("--optimizer", choices=("adam", "adamw", "sgd"), help=f"default: {default.optimizer}")
    training.add_argument(
        "--lr",
        type=OPTIONS["lr"].words(float),
        metavar="RATE",
        help=f"the peak learning rate (default: {default.lr})",
    )
    training.add_argument(
        "--weight-decay",
        type=OPTIONS["weight_decay"].words(float),
        metavar="F",
        help="default: 0.01 for adamw, 0 for adam and sgd",
    )
    training.add_argument(
        "--warmup-epochs",
        type=OPTIONS["warmup_epochs"].words(float),
        metavar="N",
        help="linear warm-up before the cosine (default: 1, or a fifth of --epochs if that is less)",
    )
    training.add_argument("--amp", choices=("bf16", "fp16", "no"), help=f"mixed precision (default: {default.amp})")
    training.add_argument("--channels-last", action="store_true", help="keep feature maps in the channels-last layout")
    training.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    training.add_argument("--seed", type=OPTIONS["seed"].words(int), metavar="N", help=f"default: {default.seed}")
    add_recipe_options(parser)

    run = parser.add_argument_group("run")
    run.add_argument("--output", metavar="DIR", help=f"the folder of the run (default: {default.output})")
    run.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, with the configuration stored there"
    )


def resolve(arguments: argparse.Namespace) -> tuple[Config, dict[str, Any] | None]:
    """The configuration to run with; for a run that is resumed also what was in its data set.

    A run that goes on for more epochs than it was planned for has no ``schedule_from``: its state has to be read first.

    Raises:
        UserError: the folder holds a run and ``--resume`` is not given, or holds none and it is, or an option
            differs from the run's.
    """
    check_paths(arguments)
    names = {each.name for each in dataclasses.fields(Config)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if "where" in given:
        given["where"] = tuple(site for word in given["where"] for site in word.split(",") if site)
        if isinstance(given.get("attention"), dict):
            raise UserError("--where: --attention names the sites already (site=name), expected one or the other")
    if "attention_kwargs" in given:
        with as_user_error(ValueError, prefix="--attention-kwargs: "):
            given["attention_kwargs"] = OPTIONS["attention_kwargs"](given["attention_kwargs"])
    config = Config(**given).resolved()
    if not getattr(arguments, "resume", False):
        for name in ("where", "attention_kwargs"):
            if name in given and config.attention is None:
                raise UserError(f"--{name.replace('_', '-')}: there is no attention; expected --attention beside it")
        with as_user_error(ValueError):
            config.check()
        refuse_other_run(Path(config.output))
        return config, None
    stored, dataset = load_config(config.output)
    if given.get("epochs", 0) > stored.epochs:
        stored = dataclasses.replace(stored, epochs=given["epochs"], schedule_from=None)
    for name, value in ((name, getattr(config, name)) for name in given if name not in MAY_CHANGE):
        kept = getattr(stored, name)
        if value != kept:
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option}: {show(value)} was given, but the run in {config.output} has {show(kept)}; leave {option} "
                "out to resume it, or start another run in another --output"
            )
    return dataclasses.replace(stored, **{name: value for name, value in given.items() if name in MAY_CHANGE}), dataset


def refuse_other_run(output: Path) -> None:
    """Raise a UserError if the folder already holds (part of) a run."""
    there = [name for name in OWN_FILES if os.path.lexists(output / name)]
    if there:
        raise UserError(
            f"--output: {output} already holds a run ({', '.join(there)}); --resume goes on with it, or choose "
            "another folder"
        )


def show(value: object) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items()) or "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
