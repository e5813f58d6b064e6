"""Weights for a network: read from a file, a state dict or torchvision, and loaded with every key accounted for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("triton_attn")

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | Any | None
SUFFIXES = (".pth", ".pt", ".safetensors")


def load_weights(model: nn.Module, weights: Weights, architecture: str) -> list[str]:
    """Load weights into a network; only keys of attention may be missing.

    Args:
        model: the network.
        weights: a path (``.pth`` or ``.pt``, read with ``weights_only=True``, or ``.safetensors``), a state dict, a
            torchvision weights enum, or the name of one (``"IMAGENET1K_V2"``, ``"ResNet50_Weights.DEFAULT"``).
        architecture: the network's name, which torchvision's short names belong to.

    Returns:
        The attention keys that were not in the weights, and keep their initial values; they are also logged.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file cannot be read, or keys are missing, left over or of another shape (the error names them).
    """
    state = read_weights(weights, architecture)
    missing = check_keys(model.state_dict(), state)
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
    fresh = [key for key in missing if "attention" in key.split(".")]
    # Older files (torchvision's IMAGENET1K_V1 among them) have no such counters; PyTorch's strict loading adds them.
    lacking = [key for key in missing if key not in fresh and not key.endswith(".num_batches_tracked")]
    problems = [
        f"{what}: {_some(keys)}"
        for what, keys in (("missing", lacking), ("not of this model", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if any(key.startswith("fc.") for key in reshaped):
        problems.append("for another number of classes, build with the weights' num_classes and then replace model.fc")
    if problems:
        raise ValueError("weights do not fit the model. " + ". ".join(problems))
    return fresh


def read_weights(weights: Weights, architecture: str) -> Mapping[str, Tensor]:
    """The state dict that ``weights`` stands for. Arguments and errors as in :func:`load_weights`."""
    if isinstance(weights, Mapping):
        return _check_state(weights, "weights")
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
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"weights: reading {path} needs safetensors: pip install safetensors") from error
    except Exception as error:  # truncated or foreign files raise a dozen different types
        raise ValueError(f"weights: {path} cannot be read ({type(error).__name__}: {error})") from error
    return _check_state(state, f"weights: {path}")


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


def _check_state(state: Any, what: str) -> Mapping[str, Tensor]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} must be a state dict (a mapping from name to tensor), got {type(state).__name__}")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ValueError(
                f"{what} must be a state dict (a mapping from name to tensor), got {key!r}: {type(value).__name__}"
            )
    return state


def _some(keys: list[str], most: int = 8) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest
