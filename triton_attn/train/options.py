"""The options of ``triton-attn train``, and how they meet the configuration of a run that is resumed."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from .config import FILE, OPTIONS, Config, load_config
from .errors import UserError, as_user_error
from .option_table import TABLE
from .values import check_paths

MAY_CHANGE = ("output", "workers", "check_images")
"""What may differ when a run goes on, because no number depends on it."""

WEIGHTS = ("best.safetensors", "last.safetensors", "best-ema.safetensors", "last-ema.safetensors")
OWN_FILES = (FILE, "metrics.csv", *WEIGHTS, "curves.png", "last", "tensorboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``; those that are not given leave no trace, so that defaults live in Config."""
    parser.argument_default = argparse.SUPPRESS
    default = Config()
    for title, rows in TABLE.items():
        group = parser.add_argument_group(title)
        for row in rows:
            row.add_to(group, default)


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
