"""Networks of timm to train, with attention inserted behind the modules that patterns name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..fuse_command import find
from ..insertion import Attention, insert
from ..reference.registry import look_up
from ..reference.weights import read_file
from ..registry import ALL, create_attention
from .tensors import check_values

PREFIX = "timm/"


def is_foreign(model: str) -> bool:
    """Whether a model's name is one of timm's, as ``timm/resnet50``."""
    return model.startswith(PREFIX)


def build(
    model: str,
    attention: str | Mapping[str, str] | None,
    where: Sequence[str],
    kwargs: Mapping[str, Any],
    num_classes: int,
    image_size: int,
) -> nn.Module:
    """A network of timm with fresh weights, on the CPU; its attention changes nothing at first.

    Args:
        model: ``timm/NAME``.
        attention: a block's name, or one for every pattern of paths, or None.
        where: the patterns of a block that goes by a name alone.
        kwargs: arguments of the blocks.
        num_classes: the width of the last layer.
        image_size: of the images that it will see.

    Raises:
        ValueError, TypeError: a model, a block, a pattern or an argument that is not known, or a place where no
            attention can stand.
    """
    models, _, name = find(model)
    made = models.create_model(name, pretrained=False, num_classes=num_classes)
    if attention is None:
        return made
    chosen = dict.fromkeys(where, attention) if isinstance(attention, str) else attention
    for block in chosen.values():
        look_up("attention", block, ALL)
    blocks: dict[str, Attention] = {pattern: _maker(block, kwargs) for pattern, block in chosen.items()}
    insert(made, blocks, example=torch.zeros(1, 3, image_size, image_size))
    return made


def _maker(block: str, kwargs: Mapping[str, Any]) -> Attention:
    return lambda channels: create_attention(block, channels, **{"identity": True, **kwargs})


def load(model: nn.Module, weights: str) -> str | None:
    """Load a file of weights into a network of timm; what is for other classes than its own is left out.

    Returns:
        A sentence about the last layer if that starts fresh.

    Raises:
        ValueError, FileNotFoundError: no such file, or weights that do not fit or are not finite.
    """
    if not Path(weights).exists():
        raise ValueError("expected a .safetensors or .pth file: timm's own weights are not downloaded")
    state, own = dict(read_file(Path(weights))), model.state_dict()
    classifier = [key for key in own if _is_of_classifier(model, key)]
    others = [key for key in classifier if key in state and state[key].shape != own[key].shape]
    for key in classifier if others else ():
        state.pop(key, None)
    check_values(state, own)
    fits: dict[str, Tensor] = {key: value for key, value in state.items() if key in own}
    missing = [key for key in own if key not in fits and ".attention." not in key and key not in classifier]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        raise ValueError(f"missing {missing[:5]}, unexpected {unexpected[:5]}: expected the weights of this network")
    model.load_state_dict(fits, strict=False)
    return "they are for other classes than the data, so the last layer starts fresh" if others else None


def _is_of_classifier(model: Any, key: str) -> bool:
    names = model.default_cfg.get("classifier") or ()
    return any(key.startswith(f"{name}.") for name in ((names,) if isinstance(names, str) else names))
