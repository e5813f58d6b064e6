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

from ..files import read_text, write_text
from .errors import UserError
from .rules import TEXT, TRUTH, Rule, as_list, check_fields, either, mapping, maybe, number, one_of, sequence, whole

FILE = "config.yaml"
VERSION = 3
PACKAGES = ("torch", "torchvision", "accelerate", "torchmetrics", "safetensors", "numpy", "pillow", "scikit-learn")

MOST_TOLD = 300
MOST_PIXELS, MOST_ARGUMENT = 8192, 2**16
"""Along a side of an image; of a block's argument: more is a mistake or an attack, and takes all memory there is."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of images of so many channels."""

_SCALAR = either(
    f"a text, true, false, nothing, or a number of at most {MOST_ARGUMENT}",
    TEXT,
    TRUTH,
    one_of(None),
    whole(-MOST_ARGUMENT, MOST_ARGUMENT),
    number("", lambda value: abs(value) <= MOST_ARGUMENT),
)

NETWORK: dict[str, Rule] = {
    "model": TEXT,
    "attention": either("a block, or one for every site, or nothing", one_of(None), TEXT, mapping(TEXT, TEXT)),
    "where": sequence(TEXT, most=64),
    "attention_kwargs": mapping(TEXT, either("a value or a list of them", _SCALAR, sequence(_SCALAR, most=64))),
    "image_size": whole(1, MOST_PIXELS),
}
"""What describes a network, in a configuration and in a card. Which names there are, its constructor knows."""

_UP_TO_A_MILLION = number("a number of at least 0 and at most a million", lambda value: 0 <= value <= 1e6)

OPTIONS: dict[str, Rule] = {
    **NETWORK,
    "weights": maybe(TEXT),
    "data": TEXT,
    "val_fraction": number("a number between 0 and 1", lambda value: 0 < value < 1),
    "check_images": TRUTH,
    "epochs": whole(1, 10**6),
    "batch_size": whole(1, 10**6),
    "optimizer": one_of("adam", "adamw", "sgd"),
    "lr": number("a number above 0 and at most a million", lambda value: 0 < value <= 1e6),
    "weight_decay": _UP_TO_A_MILLION,
    "warmup_epochs": _UP_TO_A_MILLION,
    "amp": one_of("bf16", "fp16", "no"),
    "channels_last": TRUTH,
    "compile": TRUTH,
    "seed": whole(0),
    "workers": whole(0, 1024),
    "schedule_from": whole(0, 10**6),
}
"""What the options may be, on the command line and in ``config.yaml``."""

_ZERO_TO_ONE = number("a number of at least 0 and at most 1", lambda value: 0 <= value <= 1)
_BELOW_ONE = number("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
_SHARE = number("a number above 0 and at most 1", lambda value: 0 < value <= 1)
_ABOVE_ZERO = number("a number above 0 and at most a million", lambda value: 0 < value <= 1e6)

RECIPE: dict[str, Rule] = {
    "in_channels": one_of(*MODES),
    "eval_image_size": whole(1, MOST_PIXELS),
    "crop_fraction": _SHARE,
    "train_fraction": _SHARE,
    "auto_augment": one_of("autoaugment", "randaugment", "trivialaugment", "augmix", "none"),
    "random_erasing": _ZERO_TO_ONE,
    "mixup": _UP_TO_A_MILLION,
    "cutmix": _UP_TO_A_MILLION,
    "label_smoothing": _BELOW_ONE,
    "class_weights": one_of("balanced", "none"),
    "freeze": one_of("backbone", "none"),
    "attention_lr": maybe(_ABOVE_ZERO),
    "decay_norms": TRUTH,
    "clip_grad": maybe(_ABOVE_ZERO),
    "accumulate": whole(1, 10**6),
    "ema": maybe(number("a number above 0 and below 1", lambda value: 0 < value < 1)),
    "early_stop": maybe(whole(1, 10**6)),
    "grad_checkpointing": TRUTH,
}
"""The options that came with version 3 of ``config.yaml``; what runs before it did is what their defaults do."""

OPTIONS |= RECIPE

DATASET: dict[str, Rule] = {
    "train_images": whole(1),
    "val_images": whole(1),
    "classes": as_list(sequence(TEXT, 2, distinct=True)),
    "files": mapping(TEXT, as_list(sequence(TEXT, 2, 2))),
}
"""What ``config.yaml`` says about the data; ``files`` has digests of the names and of the sizes, by class."""


@dataclass(frozen=True)
class Config:
    """All options of ``triton-attn train``, by the names they have there, but for ``--resume``.

    Those from ``in_channels`` on are of version 3 of the file.

    Those that are None take a default that depends on another: see :meth:`resolved`.

    Attributes:
        schedule_from: the epochs that were done when the schedule of the learning rate was made, 0 unless a run goes
            on for longer than it was planned; None until that number is known. No option.
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
    schedule_from: int | None = 0
    in_channels: int = 3
    eval_image_size: int | None = None
    crop_fraction: float = 1.0
    train_fraction: float = 1.0
    auto_augment: str = "none"
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    freeze: str = "none"
    attention_lr: float | None = None
    decay_norms: bool = False
    clip_grad: float | None = None
    accumulate: int = 1
    ema: float | None = None
    early_stop: int | None = None
    grad_checkpointing: bool = False

    def resolved(self) -> Config:
        """The same with every default filled in, and paths made absolute, so that it can be resumed from anywhere."""
        digits = self.data == "digits"
        weight_decay, warmup, weights = self.weight_decay, self.warmup_epochs, self.weights
        if weight_decay is None:
            weight_decay = 0.01 if self.optimizer == "adamw" else 0.0
        if weights is not None and Path(weights).exists():  # a name of torchvision's is no path
            weights = str(Path(weights).absolute())
        size = self.image_size or (48 if digits else 224)
        return dataclasses.replace(
            self,
            data=self.data if digits else str(Path(self.data).absolute()),
            weights=weights,
            image_size=size,
            eval_image_size=self.eval_image_size or size,
            warmup_epochs=min(1.0, self.epochs / 5) if warmup is None else warmup,
            weight_decay=weight_decay,
            workers=(0 if digits else min(4, os.cpu_count() or 1)) if self.workers is None else self.workers,
        )

    def check(self) -> None:
        """Raise a ValueError if options contradict one another."""
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"--warmup-epochs: expected less than --epochs {self.epochs}, got {self.warmup_epochs:g}")
        if self.attention_lr is not None and self.attention is None:
            raise ValueError("--attention-lr: there is no attention; expected --attention beside it")
        if self.freeze == "backbone" and self.weights is None:
            raise ValueError("--freeze: the backbone would stay as it was drawn; expected --weights beside it")
        if self.auto_augment != "none" and self.in_channels == 4:
            raise ValueError(f"--auto-augment: expected --in-channels 1 or 3 beside {self.auto_augment}, got 4")
        if self.grad_checkpointing and self.compile:
            raise ValueError("--grad-checkpointing: with --compile, expected one or the other")

    def save(self, dataset: Mapping[str, Any]) -> None:
        """Write ``config.yaml`` into the output folder, with versions and what is in the data set."""
        import yaml

        fields = dataclasses.asdict(self)
        del fields["output"]  # the folder may be moved
        fields["where"] = list(self.where)
        text = yaml.safe_dump(
            {"version": VERSION, "options": fields, "dataset": dict(dataset), "versions": versions()},
            sort_keys=False,
            allow_unicode=True,
        )
        write_text(Path(self.output) / FILE, text)


def load_config(output: str | Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of the run in a folder, and what was in its data set.

    Raises:
        UserError: there is no run, or its ``config.yaml`` cannot be read.
    """
    import yaml  # not above: whoever looks at a checkpoint alone needs none of the extra packages

    path = Path(output) / FILE
    if not path.is_file():
        raise UserError(f"--output: {output} holds no run (no {FILE}); start one without --resume")
    try:
        stored = yaml.safe_load(read_text(path))
        version = stored.get("version", 1)
        one_of(1, 2, VERSION)(version)
        # In the first version no run went on for longer than it was planned; before the third all parameters decayed.
        later = {1: ["schedule_from", *RECIPE], 2: RECIPE}.get(version, ())
        options = check_fields(stored["options"], OPTIONS, later)
        dataset = check_fields(stored["dataset"], DATASET, DATASET)  # what it lacks, a run that is resumed minds
        config = Config(output=str(output), **{"decay_norms": True, **options})
        if config.eval_image_size is None:
            config = dataclasses.replace(config, eval_image_size=config.image_size)
        config.check()
    except Exception as error:  # not YAML, not a mapping, nested without end …
        reason = " ".join(str(error).split())[:MOST_TOLD]
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
