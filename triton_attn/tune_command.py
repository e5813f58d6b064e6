"""``triton-attn tune``: search the fastest configs for a network's attention on this GPU, and keep them."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from . import backend, resnet
from .backend import BackendError
from .reference.registry import SITES
from .registry import list_attention
from .tune import Call, calls, tune_calls

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """Seconds of "300", "90s", "5m" or "1.5h"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"expected a time such as 90s, 5m or 1h, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def image_batch(text: str) -> tuple[int, int, int, int]:
    """The sizes of "64x3x224x224"."""
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts) or parts[1] != "3":
        raise argparse.ArgumentTypeError(f"expected images as BATCHx3xHEIGHTxWIDTH, such as 64x3x224x224, got {text!r}")
    batch, channels, height, width = map(int, parts)
    return batch, channels, height, width


def _names(known: tuple[str, ...] | list[str]) -> object:
    def names(text: str) -> list[str]:
        given = text.split(",")
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}, expected some of {', '.join(known)}")
        return given

    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``triton-attn tune``."""
    parser.description = (
        "Search the fastest configs of the kernels that a ResNet's attention starts on this GPU, and keep them in the "
        "user's table, which every later launch on this device goes by. No config changes a result."
    )
    attention, sites = list_attention(), list(SITES)
    parser.add_argument("--model", choices=MODELS, default="resnet50", help="the network (default: %(default)s)")
    parser.add_argument(
        "--attention",
        type=_names(attention),  # type: ignore[arg-type]
        default=attention,
        metavar="A,B",
        help=f"blocks, of {', '.join(attention)} (default: all)",
    )
    parser.add_argument(
        "--where",
        type=_names(sites),  # type: ignore[arg-type]
        default=[site for site in sites if site != "block"],
        metavar="A,B",
        help=f"sites, of {', '.join(sites)} (default: all but block, whose maps are those of the stages)",
    )
    parser.add_argument(
        "--input",
        type=image_batch,
        default=(64, 3, 224, 224),
        metavar="NxCxHxW",
        help="the images (default: 64x3x224x224); other batches take the same configs",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the network (default: %(default)s)")
    parser.add_argument("--layout", choices=LAYOUTS, default="channels_last", help="of maps (default: %(default)s)")
    parser.add_argument("--inference", action="store_true", help="tune the forward alone")
    parser.add_argument("--again", action="store_true", help="search what the table has, too")
    parser.add_argument("--budget", type=duration, metavar="TIME", help="begin no search after that: 90s, 5m, 1h")
    parser.add_argument("--device", default="cuda", metavar="cuda:N", help="the GPU (default: the current one)")
    parser.add_argument("--output", metavar="FILE", help="the table (default: the user's for this device)")


def run(args: argparse.Namespace) -> int:
    """Tune, with a line for every search, and print the table at the end.

    Raises:
        UserError: there is no such GPU, Triton does not serve it, or --output is a file of another kind.
    """
    from .train.errors import UserError, as_user_error
    from .train.values import check_paths

    check_paths(args)
    device = _device(args.device)
    like = torch.empty((1, 64, 8, 8), dtype=DTYPES[args.dtype], device=device)
    if backend.interpreting():
        print("Under Triton's interpreter times say nothing about a GPU.", file=sys.stderr)
    with as_user_error(BackendError, prefix="--device: "), as_user_error(ValueError, OSError, prefix="--output: "):
        tuned = tune_calls(
            network_calls(args),
            like,
            budget=args.budget,
            training=not args.inference,
            path=Path(args.output) if args.output else None,
            again=args.again,
            progress=_say,
        )
    print(f"\n{tuned}")
    if not (tuned.found or tuned.kept or tuned.left_out or tuned.failed):
        raise UserError("--attention: these blocks start no kernel with configs to choose from here")
    return 0


def network_calls(args: argparse.Namespace) -> list[Call]:
    """The distinct calls of blocks in the networks that the arguments ask for."""
    found: dict[object, Call] = {}
    images = torch.empty(args.input, dtype=DTYPES[args.dtype]).contiguous(memory_format=LAYOUTS[args.layout])
    for name in args.attention:
        model = getattr(resnet, args.model)(name, where=args.where).to(DTYPES[args.dtype])
        found |= {call.signature: call for call in calls(model, images)}
    return list(found.values())


def _device(name: str) -> torch.device:
    from .train.errors import UserError

    if backend.interpreting():
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device: expected a GPU such as cuda or cuda:1, got {name!r}") from error
    if device.type != "cuda" or not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise UserError(f"--device: tuning needs a GPU, got {name!r}, and there are {count} here")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _say(line: str) -> None:
    print(line, flush=True)
