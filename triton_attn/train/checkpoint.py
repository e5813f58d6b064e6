"""Weights files that say what they are: a network's weights with everything needed to rebuild and feed it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import resnet
from ..files import check_name, write_bytes
from ..reference.registry import look_up
from ..reference.resnet import ARCHITECTURES
from ..reference.weights import present_keys
from . import foreign
from .config import MODES, MOST_PIXELS, NETWORK, RECIPE
from .errors import UserError, as_user_error
from .rules import TEXT, Rule, brief, check_fields, number, one_of, sequence, whole
from .tensors import check_tensors, read_tensors, tensor_bytes

KEY = "triton_attn"
"""The metadata key that holds the card, as JSON."""

VERSION = 2

CARD: dict[str, Rule] = {
    **NETWORK,
    "num_classes": whole(1),
    "classes": sequence(TEXT, 1, distinct=True),
    "mean": sequence(number("a number"), 1, 4),
    "std": sequence(number("a number above 0", lambda value: value > 0), 1, 4),
    "epoch": whole(0),
    "val_accuracy": number("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "eval_image_size": whole(1, MOST_PIXELS),
    "crop_fraction": RECIPE["crop_fraction"],
    "version": one_of(1, VERSION),
}
"""What the fields of a card may be."""

LATER = ("eval_image_size", "crop_fraction")
"""What cards of version 1 lack: they mean images of the size of the training, whole."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint says about itself, carried in its safetensors metadata.

    Attributes:
        model: ``"resnet18"`` … ``"resnet152"``, or ``"timm/NAME"``.
        attention: a block's name, a mapping from site to name, or None; the sites in a network of timm are patterns of
            paths.
        where: the sites of ``attention`` when that is one name.
        attention_kwargs: arguments of the blocks.
        num_classes: the width of the last layer.
        classes: the names of the classes, in the order of the logits.
        image_size: height and width of the images it was trained on, in pixels.
        mean, std: what an image in [0, 1] is normalised with, of 1 (grey), 3 (RGB) or 4 channels (RGB and opacity).
        eval_image_size: height and width of the images that are looked at, in pixels.
        crop_fraction: the share of their shorter side that is seen.
        epoch: after how many epochs the weights were saved, from 1.
        val_accuracy: top-1 on the held-out images at that epoch, 0 to 1.
    """

    model: str
    attention: str | dict[str, str] | None
    where: tuple[str, ...]
    attention_kwargs: dict[str, Any]
    num_classes: int
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    epoch: int = 0
    val_accuracy: float = 0.0
    version: int = VERSION
    eval_image_size: int = 0
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not self.eval_image_size:
            object.__setattr__(self, "eval_image_size", self.image_size)

    @property
    def in_channels(self) -> int:
        """The channels of the images."""
        return len(self.mean)

    @property
    def mode(self) -> str:
        """Pillow's name of the channels of the images."""
        return MODES[self.in_channels]

    def to_metadata(self) -> dict[str, str]:
        """The card as safetensors metadata."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False)
        # A class's folder may be named by bytes that are no letters; as an escape, JSON takes them.
        return {"format": "pt", KEY: text.encode("utf-8", "backslashreplace").decode("utf-8")}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> Card:
        """Read a card back.

        Raises:
            ValueError: the metadata hold no card, or one with other fields than these or of another version.
        """
        if not metadata or KEY not in metadata:
            raise ValueError(f"its metadata have no {KEY!r} entry")
        try:
            found = json.loads(metadata[KEY])
        except RecursionError as error:
            raise ValueError("its metadata are nested without end") from error
        version = found.get("version") if isinstance(found, dict) else VERSION
        if version not in (1, VERSION):
            raise ValueError(f"its card is of version {brief(version)}, expected 1 or {VERSION}")
        card = cls(**check_fields(found, CARD, LATER if version == 1 else ()) | {"version": VERSION})
        if card.num_classes != len(card.classes):
            raise ValueError(f"num_classes: expected as many as there are classes, got {card.num_classes}")
        if card.in_channels not in MODES or len(card.std) != card.in_channels:
            counts = f"{card.in_channels} and {len(card.std)}"
            raise ValueError(f"mean, std: expected a list of 1, 3 or 4 values each, got {counts}")
        return card

    def build(self) -> nn.Module:
        """The network this card describes, with the fast blocks and fresh weights, on the CPU.

        Raises:
            ValueError, TypeError: a model, a block, a site or an argument that this version does not know.
        """
        if foreign.is_foreign(self.model):
            options = self.attention_kwargs, self.num_classes, self.image_size, self.in_channels
            return foreign.build(self.model, self.attention, self.where, *options)
        look_up("model", self.model, ARCHITECTURES)
        make = getattr(resnet, self.model)
        kwargs = self.attention_kwargs if self.attention is not None else None
        model = make(self.attention, where=self.where, attention_kwargs=kwargs, num_classes=self.num_classes)
        if self.in_channels != 3:
            old = model.conv1
            model.conv1 = nn.Conv2d(
                self.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False
            )
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        return model


def save_model(path: Path, state: Mapping[str, Tensor], card: Card) -> None:
    """Write a state dict and its card into a ``.safetensors`` file, whole or not at all."""
    write_bytes(path, tensor_bytes(state, card.to_metadata()))


def load_model(path: Path | str) -> tuple[nn.Module, Card]:
    """Rebuild a trained network.

    Args:
        path: a ``.safetensors`` file, or the folder of a run (its best weights, else its last).

    Returns:
        The network in evaluation mode on the CPU, and the card.

    Raises:
        ValueError: no such file, or one that is truncated or not a checkpoint of this package, or whose weights are
            of another form or not finite; the file is named.
    """
    file = find_weights(path)
    state, card = read_checkpoint(file)
    with as_user_error(ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, prefix=f"{file}: "):
        model = card.build()
    with as_user_error(ValueError, prefix=f"{file}: its weights do not fit the {card.model} that it describes: "):
        own = model.state_dict()
        state = present_keys(state, own)
        check_tensors(state, own)
    model.load_state_dict(state)
    return model.eval(), card


def open_checkpoint(word: str) -> tuple[Path, nn.Module, Card]:
    """The file that a command line's CHECKPOINT stands for, and what :func:`load_model` reads of it.

    Raises:
        UserError: as of that, which begins with the argument.
    """
    try:
        file = find_weights(word)
        return file, *load_model(file)
    except UserError as error:
        raise UserError(f"CHECKPOINT: {error}") from error


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], Card]:
    """The tensors and the card of a ``.safetensors`` file; errors as for :func:`load_model`."""
    with as_user_error(
        ValueError, prefix=f"{file}: cannot be read (", suffix="); expected a .safetensors file of triton-attn train"
    ):
        state, metadata = read_tensors(file)
    with as_user_error(ValueError, prefix=f"{file}: not a checkpoint of triton-attn train: "):
        return state, Card.from_metadata(metadata)


def find_weights(path: Path | str) -> Path:
    """The file that ``path`` stands for: itself, or the best, else the last weights of a run's folder.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    with as_user_error(OSError):
        check_name(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: no best.safetensors or last.safetensors in it; expected the folder of a training run")
    if not os.path.isfile(path):
        what = "it is no file" if os.path.lexists(path) else "no such file"
        raise UserError(f"{path}: {what}; expected a .safetensors file or the folder of a training run")
    return path


def cpu_state(model: nn.Module) -> dict[str, Tensor]:
    """A network's state dict, copied to the CPU."""
    return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
