"""Weights files that say what they are: a network's weights with everything needed to rebuild and feed it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import resnet
from ..files import new_file
from ..reference.registry import look_up
from ..reference.resnet import ARCHITECTURES, ResNet
from .errors import UserError, as_user_error

KEY = "triton_attn"
"""The metadata key that holds the card, as JSON."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint says about itself, carried in its safetensors metadata.

    Attributes:
        model: ``"resnet18"`` … ``"resnet152"``.
        attention: a block's name, a mapping from site to name, or None.
        where: the sites of ``attention`` when that is one name.
        attention_kwargs: arguments of the blocks.
        num_classes: the width of the last layer.
        classes: the names of the classes, in the order of the logits.
        image_size: height and width of the images it was trained on, in pixels.
        mean, std: what an image in [0, 1] is normalised with, per channel.
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
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    epoch: int = 0
    val_accuracy: float = 0.0
    version: int = field(default=1)

    def to_metadata(self) -> dict[str, str]:
        """The card as safetensors metadata."""
        return {"format": "pt", KEY: json.dumps(dataclasses.asdict(self), ensure_ascii=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> Card:
        """Read a card back.

        Raises:
            ValueError: the metadata hold no card, or one with other fields than these.
        """
        if not metadata or KEY not in metadata:
            raise ValueError(f"its metadata have no {KEY!r} entry")
        fields = json.loads(metadata[KEY])
        known = {each.name for each in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != known:
            raise ValueError(f"its metadata have a {KEY!r} entry of another form")
        lists = {key: tuple(fields[key]) for key in ("where", "classes", "mean", "std")}
        return cls(**{**fields, **lists})

    def build(self) -> ResNet:
        """The network this card describes, with the fast blocks and fresh weights, on the CPU.

        Raises:
            ValueError, TypeError: a model, a block, a site or an argument that this version does not know.
        """
        look_up("model", self.model, ARCHITECTURES)
        make = getattr(resnet, self.model)
        kwargs = self.attention_kwargs if self.attention is not None else None
        return make(self.attention, where=self.where, attention_kwargs=kwargs, num_classes=self.num_classes)


def save_model(path: Path, state: Mapping[str, Tensor], card: Card) -> None:
    """Write a state dict and its card into a ``.safetensors`` file, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata=card.to_metadata())


def load_model(path: Path | str) -> tuple[ResNet, Card]:
    """Rebuild a trained network.

    Args:
        path: a ``.safetensors`` file, or the folder of a run (its best weights, else its last).

    Returns:
        The network in evaluation mode on the CPU, and the card.

    Raises:
        ValueError: no such file, or one that is truncated or not a checkpoint of this package; the file is named.
    """
    file = find_weights(path)
    state, card = read_checkpoint(file)
    with as_user_error(ValueError, TypeError, prefix=f"{file}: "):
        model = card.build()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{file}: its weights do not fit the {card.model} that its metadata describe") from error
    return model.eval(), card


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], Card]:
    """The tensors and the card of a ``.safetensors`` file; errors as for :func:`load_model`."""
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata()
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # truncated and foreign files raise safetensors' own, OSError and others
        raise UserError(
            f"{file}: cannot be read ({error}); expected a .safetensors file written by triton-attn train"
        ) from error
    with as_user_error(ValueError, prefix=f"{file}: not a checkpoint of triton-attn train: "):
        return state, Card.from_metadata(metadata)


def find_weights(path: Path | str) -> Path:
    """The file that ``path`` stands for: itself, or the best, else the last weights of a run's folder.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: no best.safetensors or last.safetensors in it; expected the folder of a training run")
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a .safetensors file or the folder of a training run")
    return path


def cpu_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A network's state dict, copied to the CPU."""
    return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
