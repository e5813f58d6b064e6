"""``triton-attn info``: versions, devices, the backend in force, and which backend every block gets here, and why."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from . import backend
from .explain import explain, form_of
from .registry import create_attention, list_attention
from .version import __version__

ABSENT = "not installed"
CHANNELS, SIZE = 64, 8
MOST_IMAGE = 64  # which backend serves does not hang on the size, and the interpreter is slow
# Triton comes under these names: on its own, with PyTorch's nightly builds, with its ROCm builds, and for Windows.
TRITONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``triton-attn info``."""
    parser.description = "Print versions, devices, and which backend serves each attention block here, and why."
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="also say what this checkpoint of triton-attn train holds (a .safetensors file or the folder of a run)",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(args: argparse.Namespace) -> int:
    """Print it.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    report: dict[str, Any] = {
        "versions": versions(),
        "devices": devices(),
        "backend": backend_in_force(),
        "blocks": blocks(),
    }
    if args.checkpoint is not None:
        report["checkpoint"] = checkpoint(args.checkpoint)
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else as_text(report))
    return 0


def versions() -> dict[str, str]:
    """What is installed, by name; read from the packages' metadata, so that no import can fail."""
    return {
        "triton_attn": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version(TRITONS),
        "torchvision": _version(["torchvision"]),
        "timm": _version(["timm"]),
        "CUDA": torch.version.cuda or "not in this build of torch",
        "ROCm": torch.version.hip or "not in this build of torch",
    }


def _version(names: Iterable[str]) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ABSENT


def devices() -> list[dict[str, Any]]:
    """The GPUs that PyTorch sees: name, compute capability (or AMD's architecture), memory in GiB."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        if torch.version.hip:
            capability = properties.gcnArchName
        memory = round(properties.total_memory / 2**30, 1)
        found.append({"index": index, "name": properties.name, "capability": capability, "memory_gib": memory})
    return found


def backend_in_force() -> dict[str, Any]:
    """What is asked for, where that comes from, and whether Triton's interpreter is on."""
    from_environment = os.environ.get(backend.VARIABLE)
    source = f"{backend.VARIABLE}={from_environment}"
    if from_environment is None:
        source = f"the default; {backend.VARIABLE} is not set"
    try:
        requested = backend.requested_backend()
    except ValueError as error:
        requested, source = "invalid", str(error)
    return {"requested": requested, "source": source, "interpreter": backend.interpreting()}


def blocks() -> list[dict[str, Any]]:
    """For every block by name: its form, what serves it here, and why.

    Each is run once on a small float32 map, on the GPU where there is one.
    """
    device = test_device()
    found = []
    for name in list_attention("all"):
        block = create_attention(name, CHANNELS).to(device)
        served, why = _served(block, device)
        found.append(
            {
                "name": name,
                "block": form_of(block),
                "backend": served,
                "reason": why,
                "device": device.type,
            }
        )
    return found


def test_device() -> torch.device:
    """Where blocks are tried: the first GPU if there is one, but Triton's interpreter serves the CPU alone."""
    return torch.device("cuda" if torch.cuda.is_available() and not backend.interpreting() else "cpu")


def _served(block: nn.Module, device: torch.device) -> tuple[str, str]:
    try:
        (answer,) = explain(block, torch.randn(1, CHANNELS, SIZE, SIZE, device=device))
    except Exception as error:  # a broken driver or compiler is what a person runs this to find out
        return "error", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if answer.backend != "triton" and backend.requested_backend() == "triton":
        return "error", f"Triton is asked for, so that a call raises BackendError: {answer.reason}"
    return answer.backend, answer.reason


def checkpoint(path: str) -> dict[str, Any]:
    """What a checkpoint says about itself, its size, and what serves its blocks here.

    Raises:
        UserError: no checkpoint, or a broken one; the file is named.
    """
    from .train.checkpoint import find_weights, load_model
    from .train.errors import UserError

    try:
        file = find_weights(path)
        model, card = load_model(file)
    except UserError as error:
        raise UserError(f"CHECKPOINT: {error}") from error
    device = test_device()
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    attention = sum(count for name, count in parameters.items() if "attention" in name.split("."))
    size = min(card.image_size, MOST_IMAGE)
    answers = explain(model.to(device), torch.randn(1, 3, size, size, device=device))
    return {
        "file": str(file),
        **dataclasses.asdict(card),
        "parameters": sum(parameters.values()),
        "attention_parameters": attention,
        "sites": [dataclasses.asdict(answer) for answer in answers],
    }


def as_text(report: dict[str, Any]) -> str:
    """The report for a person to read."""
    force = report["backend"]
    lines = ["versions", *_table(list(report["versions"].items()))]
    lines += ["", "devices"]
    for each in report["devices"]:
        kind = "architecture" if torch.version.hip else "compute capability"
        lines.append(f"  {each['index']}: {each['name']}, {kind} {each['capability']}, {each['memory_gib']} GiB")
    if not report["devices"]:
        lines.append("  no GPU")
    lines += ["", "backend", f"  {force['requested']} ({force['source']})"]
    if force["interpreter"]:
        lines.append("  TRITON_INTERPRET=1: Triton's interpreter runs the kernels on CPU tensors, slowly")
    device = report["blocks"][0]["device"]
    lines += ["", f"blocks, tried on a (1, {CHANNELS}, {SIZE}, {SIZE}) float32 map on the {_spoken(device)}"]
    rows = [(each["name"], each["block"], each["backend"], each["reason"]) for each in report["blocks"]]
    lines += _table([("name", "block", "served by", "why"), *rows])
    if "checkpoint" in report:
        lines += ["", *_checkpoint_text(report["checkpoint"])]
    return "\n".join(lines)


def _checkpoint_text(card: dict[str, Any]) -> list[str]:
    classes = ", ".join(card["classes"][:10]) + (", …" if len(card["classes"]) > 10 else "")
    attention = card["attention"] or "none"
    if isinstance(attention, dict):
        attention = ", ".join(f"{name} at {site}" for site, name in attention.items())
    elif card["attention"]:
        attention += " at " + ", ".join(card["where"])
    rows = [
        ("model", card["model"]),
        ("attention", attention),
        ("classes", f"{card['num_classes']}: {classes}"),
        ("images", f"{card['image_size']}×{card['image_size']}"),
        ("trained", f"{card['epoch']} epochs, {100 * card['val_accuracy']:.2f} % of held-out images right"),
        ("parameters", f"{card['parameters']:,}, of these {card['attention_parameters']:,} in attention"),
    ]
    sites = [(site["name"], site["block"], site["backend"], site["reason"]) for site in card["sites"]]
    header = [("module", "block", "served by", "why")] if sites else []
    return [f"checkpoint {card['file']}", *_table(rows), *_table([*header, *sites])]


def _spoken(device: str) -> str:
    return "GPU" if device == "cuda" else "CPU"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in columns, indented; the last column is as long as it likes."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
