"""``triton-attn fuse``: what :func:`triton_attn.fuse` does to an architecture of timm or torchvision."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
from typing import Any

import torch
from torch import nn

from . import fusion

LIBRARIES = ("timm", "torchvision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``triton-attn fuse``."""
    parser.description = (
        "Build an architecture without weights, fuse it, and print what became of its attention: one line per module, "
        "with the reason of those that are left."
    )
    parser.add_argument("model", metavar="LIBRARY/NAME", help="such as timm/seresnet50 or torchvision/regnet_y_8gf")
    parser.add_argument("--no-tails", action="store_true", help="leave residual blocks as they are")
    parser.add_argument("--totals", action="store_true", help="no line per module")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 where there was attention and none of it could be fused.

    Raises:
        UserError: an unknown library or name, or a library that is not installed.
    """
    report = fusion.fuse(build(args.model), tails=not args.no_tails)
    print(report.totals() if args.totals and report else report)
    return int(bool(report) and not report.fused)


def build(name: str) -> nn.Module:
    """An architecture on the meta device, without memory, or on the CPU where it cannot be built there.

    Raises:
        UserError: an unknown library or name, or a library that is not installed.
    """
    models, library, model = find(name)
    options: dict[str, Any] = {}
    if library == "torchvision":
        makes = inspect.signature(models.get_model_builder(model)).parameters
        options = {key: None for key in ("weights", "weights_backbone") if key in makes}
    create = models.create_model if library == "timm" else models.get_model
    try:
        with torch.device("meta"):
            return create(model, **options)
    except NotImplementedError:  # it reads its widths out of tensors, as torchvision's RegNet does
        return create(model, **options)


def find(name: str) -> tuple[Any, str, str]:
    """What has a library's models, the library, and the name of one of them.

    Raises:
        UserError: an unknown library or name (with the nearest known ones), or a library that is not installed.
    """
    from .train.errors import UserError

    library, _, model = name.partition("/")
    if library not in LIBRARIES or not model:
        raise UserError(f"expected {' or '.join(f'{each}/NAME' for each in LIBRARIES)}, got {name!r}")
    try:
        package: Any = importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise UserError(f"{library} is not installed: pip install {library}") from error
    models = package if library == "timm" else package.models
    known = models.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, known, 3, 0.5)
        raise UserError(f"{library} has no model {model!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return models, library, model
