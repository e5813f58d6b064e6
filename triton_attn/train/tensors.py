"""Tensors in ``.safetensors`` files, and whether they are those that a network or an optimizer expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

MOST_NAMED = 8


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The contents of a ``.safetensors`` file. The library's own writer leaves files behind when it is killed."""
    from safetensors.torch import save

    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save(whole, metadata=dict(metadata or {"format": "pt"}))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str] | None]:
    """The tensors and the metadata of a ``.safetensors`` file, which holds nothing that could be executed.

    Raises:
        ValueError: there is no such file, it is a pipe or a device, truncated, or something else.
    """
    from safetensors import safe_open

    if not file.is_file():  # to open a pipe would take forever
        raise ValueError("it is no file" if file.exists() else "no such file")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
            return tensors, opened.metadata()
    except Exception as error:  # safetensors' own, OSError, and torch's about dtypes
        raise ValueError(" ".join(str(error).split())[:300]) from error


def check_values(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Whether the tensors that have the names of others are numbers of their kind, and finite.

    Raises:
        ValueError: they are not; they are named.
    """
    there = [key for key in found if key in own]
    _raise_for(
        ("of another kind of number", [key for key in there if _kind(found[key]) != _kind(own[key])]),
        ("not finite", [key for key in there if found[key].is_floating_point() and not _finite(found[key])]),
    )


def check_tensors(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Whether tensors may be copied into others, all of them.

    Args:
        found: those of a file.
        own: those that they are for, by the same names, of the same shapes; floating where those are.

    Raises:
        ValueError: there are others, of other shapes or kinds, or with values that are not finite; they are named.
    """
    _raise_for(
        ("missing", [key for key in own if key not in found]),
        ("not of this network", [key for key in found if key not in own]),
        ("of another shape", [key for key in found if key in own and found[key].shape != own[key].shape]),
    )
    check_values(found, own)


def _raise_for(*problems: tuple[str, list[str]]) -> None:
    for what, keys in problems:
        if keys:
            more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
            raise ValueError(f"{what}: {', '.join(keys[:MOST_NAMED])}{more}")


def _kind(tensor: Tensor) -> object:
    return "floating" if tensor.is_floating_point() else tensor.dtype


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())
