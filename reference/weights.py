"""Weights for a network: read from a file, a state dict or torchvision, and loaded with every key accounted for."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
logger = logging.getLogger("triton_attn")

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | Any | None
_EARLIER = re.compile(r"(^|.*[./])attention\.(layer[1-4])\.")
SUFFIXES = (".pth", ".pt", ".safetensors")
WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")
"""Where checkpoints have a state dict, those first that are taken first."""
AVERAGED = "n_averaged"


def load_weights(model: nn.Module, weights: Weights, architecture: str) -> list[str]:
    """Load weights into a network; only keys of attention may be missing.

    Args:
        model: the network.
        weights: a path (``.pth`` or ``.pt``, read with ``weights_only=True``, or ``.safetensors``), a state dict, a
            torchvision weights enum, or the name of one (``"IMAGENET1K_V2"``, ``"ResNet50_Weights.DEFAULT"``). A
            checkpoint that holds a state dict among other things is unwrapped, and a prefix that all keys share is
            taken off; both are logged.
        architecture: the network's name, which torchvision's short names belong to.

    Returns:
        The attention keys that were not in the weights, and keep their initial values; they are also logged.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file cannot be read, or keys are missing, left over or of another shape (the error names them);
            a part of a block's keys is missing, which is no block that starts fresh.
    """
    own = model.state_dict()
    state = by_keys_of(own, read_weights(weights, architecture))
    missing = check_keys(own, state)
    model.load_state_dict(state, strict=False)
    if missing:
        logger.warning(
            "weights: %d attention keys are not among them and start fresh: %s", len(missing), _some(missing)
        )
    return missing


def check_keys(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The attention keys of ``own`` that ``state`` lacks; a ValueError for any other difference."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key} {tuple(value.shape)}, expected {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    # Older files (torchvision's IMAGENET1K_V1 among them) have no such counters; PyTorch's strict loading adds them.
    fresh = [key for key in missing if block_of(key)]
    counted = [key for key in missing if not key.endswith(".num_batches_tracked")]
    there = {block_of(key) for key in own if key in state}
    problems = [
        f"{what}: {_some(keys)}"
        for what, keys in (
            ("missing", [key for key in counted if not block_of(key)]),
            ("missing of a block that is there", [key for key in counted if block_of(key) and block_of(key) in there]),
            ("not of this model", unexpected),
            ("of another shape", reshaped),
        )
        if keys
    ]
    if any(key.startswith("fc.") for key in reshaped):
        problems.append("for another number of classes, build with the weights' num_classes and then replace model.fc")
    if problems:
        raise ValueError("weights do not fit the model. " + ". ".join(problems))
    return fresh


def block_of(key: str) -> str | None:
    """The path of the attention block that a key belongs to: ``layer1.0.attention``, ``attention.stem``; or None."""
    parts = key.split(".")
    if "attention" not in parts:
        return None
    at = parts.index("attention")
    return ".".join(parts[: at + 2 if at == 0 else at + 1])


def by_keys_of(own: Container[str], state: Mapping[str, T]) -> Mapping[str, T]:
    """A state by the keys that a network has, as far as they differ in a prefix, or are of an earlier version."""
    return present_keys(without_prefix(state, own), own)


def without_prefix(state: Mapping[str, T], own: Container[str]) -> Mapping[str, T]:
    """A state without the prefixes that all of its keys share, as wrappers of a network put them there.

    Args:
        state: the state.
        own: the keys that the network has, none of which is taken apart.
    """
    taken = ""
    while state and not any(key in own for key in state):
        prefixes = {key.partition(".")[0] for key in state}
        if len(prefixes) > 1 or not all("." in key for key in state):
            break
        taken += prefixes.pop() + "."
        state = {key.partition(".")[2]: value for key, value in state.items()}
    if taken:
        logger.warning("weights: all keys start with %r, which is taken off", taken)
    return state


def present_keys(state: Mapping[str, T], own: Container[str]) -> dict[str, T]:
    """A state by the keys that a network has now: in earlier versions a stage's attention lay outside of the stage.

    Args:
        state: by names of parameters, or by paths that end in one.
        own: the keys that the network has.
    """
    found = {}
    for key, value in state.items():
        new = _EARLIER.sub(r"\1\2.attention.", key)
        found[new if key not in own and new in own else key] = value
    return found


def read_weights(weights: Weights, architecture: str) -> Mapping[str, Tensor]:
    """The state dict that ``weights`` stands for. Arguments and errors as in :func:`load_weights`."""
    if isinstance(weights, Mapping):
        return unwrap(weights, "weights")
    if isinstance(weights, (str, os.PathLike)):
        path = Path(weights)
        if isinstance(weights, os.PathLike) or path.suffix in SUFFIXES or path.exists():
            return read_file(path)
        return load_torchvision(str(weights), architecture)
    if hasattr(weights, "get_state_dict"):
        return load_torchvision(weights, architecture)
    raise TypeError(
        f"weights must be a path, a state dict, a torchvision weights enum or its name; got {type(weights).__name__}"
    )


def read_file(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a ``.safetensors`` file, or from any other with ``torch.load(weights_only=True)``."""
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            # The options of a training script, which many save beside the weights: names and values, nothing that runs.
            with torch.serialization.safe_globals([argparse.Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"weights: reading {path} needs safetensors: pip install safetensors") from error
    except Exception as error:  # truncated or foreign files raise a dozen different types
        raise ValueError(f"weights: {path} cannot be read ({type(error).__name__}: {error})") from error
    return unwrap(state, f"weights: {path}")


def load_torchvision(weights: Any, architecture: str) -> Mapping[str, Tensor]:
    """The state dict of a torchvision weights enum, or of its name.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        ValueError: no weights of that name.
        RuntimeError: the weights could not be downloaded.
    """
    try:
        from torchvision.models import get_model_weights, get_weight
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"weights={weights!r} are torchvision's, which is not installed: pip install torchvision, "
            "or pass the path of a file"
        ) from error
    if isinstance(weights, str):
        try:
            weights = get_weight(weights) if "." in weights else get_model_weights(architecture)[weights]
        except (KeyError, ValueError) as error:
            known = ", ".join(member.name for member in get_model_weights(architecture))
            raise ValueError(
                f"weights={weights!r} is neither a file nor torchvision's weights for {architecture} ({known}, DEFAULT)"
            ) from error
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:  # no network: urllib's URLError is one
        raise RuntimeError(
            f"{weights} could not be downloaded from {weights.url} ({error}). Without a network, pass the path of a "
            "file as weights=, or pretrained=False to ResNetWithAttention"
        ) from error


def unwrap(found: Any, what: str) -> Mapping[str, Tensor]:
    """The state dict that a mapping is, or that lies in it, as in the checkpoints of training scripts and Lightning.

    Of averaged weights (EMA) and those that they were averaged from, the averaged ones, as timm has it: they are what
    was evaluated.

    Raises:
        ValueError: there is none.
    """
    inner = next((key for key in WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None)
    if inner is not None:
        others = [key for key in WRAPPERS if key != inner and isinstance(found.get(key), Mapping)]
        beside = f" (there is {' and '.join(map(repr, others))} as well: pass it as a state dict)" if others else ""
        logger.warning("%s: taken from its %r%s", what, inner, beside)
        return unwrap(found[inner], f"{what}[{inner!r}]")
    state = _check_state(found, what)
    # A count beside the weights is how torch.optim.swa_utils.AveragedModel has it.
    return {key: value for key, value in state.items() if key != AVERAGED} if AVERAGED in state else state


def _check_state(state: Any, what: str) -> Mapping[str, Tensor]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} must be a state dict (a mapping from name to tensor), got {type(state).__name__}")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ValueError(
                f"{what} must be a state dict (a mapping from name to tensor), got {key!r}: {type(value).__name__}; "
                f"nor does it hold one, as {', '.join(map(repr, WRAPPERS))}"
            )
    return state


def _some(keys: list[str], most: int = 8) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest
