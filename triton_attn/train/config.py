"""The configuration of a run: what the options say, as a file that a later run can take up again."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from ..files import write_text
from .errors import UserError

FILE = "config.yaml"
PACKAGES = ("torch", "torchvision", "accelerate", "torchmetrics", "safetensors", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class Config:
    """All options of ``triton-attn train``, by the names they have there, but for ``--resume``.

    Those that are None take a default that depends on another: see :meth:`resolved`.
    """

    output: str = "runs/train"
    model: str = "resnet18"
    attention: str | dict[str, str] | None = None
    where: tuple[str, ...] = ("stem", "layer4")
    attention_kwargs: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    data: str = "digits"
    val_fraction: float = 0.2
    image_size: int | None = None
    check_images: bool = True
    epochs: int = 15
    batch_size: int = 64
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float | None = None
    warmup_epochs: float | None = None
    amp: str = "no"
    channels_last: bool = False
    compile: bool = False
    seed: int = 0
    workers: int | None = None

    def resolved(self) -> Config:
        """The same with every default filled in, and paths made absolute, so that it can be resumed from anywhere."""
        digits = self.data == "digits"
        weight_decay, warmup, weights = self.weight_decay, self.warmup_epochs, self.weights
        if weight_decay is None:
            weight_decay = 0.01 if self.optimizer == "adamw" else 0.0
        if weights is not None and Path(weights).exists():  # a name of torchvision's is no path
            weights = str(Path(weights).absolute())
        return dataclasses.replace(
            self,
            data=self.data if digits else str(Path(self.data).absolute()),
            weights=weights,
            image_size=self.image_size or (48 if digits else 224),
            warmup_epochs=min(1.0, self.epochs / 5) if warmup is None else warmup,
            weight_decay=weight_decay,
            workers=(0 if digits else min(4, os.cpu_count() or 1)) if self.workers is None else self.workers,
        )

    def save(self, dataset: Mapping[str, Any]) -> None:
        """Write ``config.yaml`` into the output folder, with versions and what is in the data set."""
        fields = dataclasses.asdict(self)
        del fields["output"]  # the folder may be moved
        fields["where"] = list(self.where)
        text = yaml.safe_dump(
            {"options": fields, "dataset": dict(dataset), "versions": versions()},
            sort_keys=False,
            allow_unicode=True,
        )
        write_text(Path(self.output) / FILE, text)


def load_config(output: str | Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of the run in a folder, and what was in its data set.

    Raises:
        UserError: there is no run, or its ``config.yaml`` cannot be read.
    """
    path = Path(output) / FILE
    if not path.is_file():
        raise UserError(f"--output: {output} holds no run (no {FILE}); start one without --resume")
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        options, dataset = dict(stored["options"]), dict(stored["dataset"])
        options["where"] = tuple(options["where"])
        config = Config(output=str(output), **options)
    except Exception as error:  # not YAML, not a mapping, other keys …
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}); expected the configuration that "
            "triton-attn train wrote"
        ) from error
    return config, dataset


def versions() -> dict[str, str]:
    """Of Python, this package and those that a run's numbers depend on."""
    from ..version import __version__

    found = {"python": platform.python_version(), "triton_attn": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
