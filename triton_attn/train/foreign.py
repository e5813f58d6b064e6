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
from ..reference.weights import read_file, without_prefix
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
    in_channels: int = 3,
) -> nn.Module:
    """A network of timm with fresh weights, on the CPU; its attention changes nothing at first.

    Args:
        model: ``timm/NAME``.
        attention: a block's name, or one for every pattern of paths, or None.
        where: the patterns of a block that goes by a name alone.
        kwargs: arguments of the blocks.
        num_classes: the width of the last layer.
        image_size: of the images that it will see.
        in_channels: the channels of these.

    Raises:
        ValueError, TypeError: a model, a block, a pattern or an argument that is not known, or a place where no
            attention can stand.
    """
    models, _, name = find(model)
    made = models.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    if attention is None:
        return made
    chosen = dict.fromkeys(where, attention) if isinstance(attention, str) else attention
    for block in chosen.values():
        look_up("attention", block, ALL)
    blocks: dict[str, Attention] = {pattern: _maker(block, kwargs) for pattern, block in chosen.items()}
    insert(made, blocks, example=torch.zeros(1, in_channels, image_size, image_size))
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
    own = model.state_dict()
    state = dict(without_prefix(read_file(Path(weights)), own))
    for key in first_of(model):
        state = fit_channels(state, key, own)
    heads = classifier_of(model)
    classifier = [key for key in own if any(key.startswith(f"{head}.") for head in heads)]
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


def first_of(model: Any) -> list[str]:
    """The keys of the convolutions that see the image: ``conv1`` of ours, of timm's what its configuration says."""
    names = getattr(model, "default_cfg", {"first_conv": "conv1"}).get("first_conv") or ()
    return [f"{name}.weight" for name in ((names,) if isinstance(names, str) else names)]


def fit_channels(state: Mapping[str, Tensor], key: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for RGB as weights for grey images, or for RGB and opacity.

    Grey adds up what the three channels weigh, and so sees a grey image as they did; opacity weighs nothing at first.

    Args:
        state: the weights.
        key: of the convolution that sees the image, ``(F, 3, h, w)``.
        own: the network's tensors, by which it has 1 or 4 channels.
    """
    weight, wanted = state.get(key), own[key].shape[1] if key in own else 3
    if weight is None or weight.dim() != 4 or weight.shape[1] != 3 or wanted not in (1, 4):
        return dict(state)
    opacity = weight.new_zeros(len(weight), 1, *weight.shape[2:])
    fitted = weight.sum(1, keepdim=True) if wanted == 1 else torch.cat([weight, opacity], 1)
    return {**state, key: fitted}


def classifier_of(model: Any) -> tuple[str, ...]:
    """The paths of a network's last layers: ``fc`` of ours, of timm's what its configuration says."""
    names = getattr(model, "default_cfg", {"classifier": "fc"}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)
