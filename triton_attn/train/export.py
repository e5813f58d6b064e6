"""``triton-attn export``: a checkpoint as a program that runs without this package, checked by running it."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from ..files import new_file
from .atomic import check_writable
from .checkpoint import KEY, Card, open_checkpoint
from .errors import UserError
from .values import check_paths

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
BATCHES = (2, 3)
"""How many images it is exported with, and how many it is checked with: the number is free."""

MOST_OFF = 1e-4
"""How far logits may be from the network's, of the largest of these or 1: it sums in another order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .safetensors file, or the folder of a run (its best weights)"
    )
    parser.add_argument(
        "--format",
        choices=tuple(SUFFIXES),
        required=True,
        help="onnx (the extra `export`: onnx, onnxscript, onnxruntime), or pt2, which torch.export.load reads",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="the file to write or replace (default: beside the checkpoint)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export as the command line says; returns the exit status.

    Raises:
        UserError: something about the arguments or the files, or a program whose logits are not the network's; no file
            is written then.
    """
    check_paths(arguments)
    file, model, card = open_checkpoint(arguments.checkpoint)
    output = output_path(arguments.output, file, SUFFIXES[arguments.format])
    check_writable(output.parent)
    write, load = (write_onnx, load_onnx) if arguments.format == "onnx" else (write_pt2, load_pt2)
    generator = torch.Generator().manual_seed(0)
    sizes = [(count, card.in_channels, card.eval_image_size, card.eval_image_size) for count in BATCHES]
    example, other = (torch.randn(size, generator=generator) for size in sizes)
    with backend.use_backend("reference"), torch.no_grad(), new_file(output) as temporary:
        write(model, example, card, temporary)
        off = difference(load(temporary)(other), model(other))
        if not off <= MOST_OFF:
            raise UserError(f"{output}: its logits are {off:.2g} from the network's, expected at most {MOST_OFF:g}")
    shape = f"(N, {card.in_channels}, {card.eval_image_size}, {card.eval_image_size})"
    print(f"{output}: images {shape} to logits (N, {card.num_classes}), {os.path.getsize(output) / 1e6:.1f} MB")
    print(f"run on {BATCHES[1]} images, its logits are within {off:.2g} of the network's")
    return 0


def output_path(given: str | None, file: Path, suffix: str) -> Path:
    """Where the program goes: ``--output``, or beside the checkpoint.

    Raises:
        UserError: a folder, or a name of another suffix.
    """
    path = file.with_suffix(suffix) if given is None else Path(given)
    if path.suffix.lower() != suffix or os.path.isdir(path):
        raise UserError(f"--output: expected the name of a {suffix} file, got {str(path)!r}")
    return path


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, as a share of the largest expected one or of 1; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def write_pt2(model: nn.Module, example: Tensor, card: Card, path: Path) -> None:
    """Write the network as :mod:`torch.export` has it, with its card as an extra file of that name."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={KEY: card.to_metadata()[KEY]})


def load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """Read that file as a function of images."""
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def write_onnx(model: nn.Module, example: Tensor, card: Card, path: Path) -> None:
    """Write the network as ONNX, ``images`` to ``logits``, with its card in the metadata."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    made = program.model_proto
    onnx.helper.set_model_props(made, {KEY: card.to_metadata()[KEY], "classes": json.dumps(card.classes)})
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Read that file as a function of images, by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
