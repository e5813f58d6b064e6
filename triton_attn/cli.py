"""The command line: ``triton-attn train | eval | predict | show | export | fuse | tune | info``."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("triton_attn.train.run", "triton_attn.train.options", "train a ResNet with attention"),
    "eval": ("triton_attn.train.evaluate", None, "evaluate a checkpoint on held-out images"),
    "predict": ("triton_attn.train.predict", None, "say what a checkpoint takes images for, as a table"),
    "show": ("triton_attn.train.show", None, "draw what the attention of a checkpoint looks at"),
    "export": ("triton_attn.train.export", None, "write a checkpoint as ONNX or as a program of torch.export"),
    "fuse": ("triton_attn.fuse_command", None, "say what of a timm or torchvision network our kernels would serve"),
    "tune": ("triton_attn.tune_command", None, "search the fastest configs of the kernels on this GPU"),
    "info": ("triton_attn.info", None, "versions, devices, and which backend serves what"),
}
"""A command's module (with ``add_arguments`` and ``run``), where its arguments are if not there, and its summary."""

TRAIN = """
    accelerate filelock matplotlib numpy PIL safetensors sklearn tensorboard torchmetrics torchvision tqdm yaml
"""
EXTRAS = {**dict.fromkeys(TRAIN.split(), "train"), **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export")}
"""Packages, and the extra that each comes with."""

POSITION = re.compile(r"-[\d.]+,")
"""How a position begins that counts from the end; to argparse it would be an option."""

_REFUSALS = "EACCES EDQUOT EEXIST EFBIG EINVAL EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENOSPC ENOTDIR EPERM EROFS"
REFUSALS = {number for number, name in errno.errorcode.items() if name in _REFUSALS.split()}
"""What the machine says no with: a full disk, a name too long, no permission. Other OSErrors are faults of ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, or 2 where the arguments, the data or the files are at fault."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be bytes that are no letters
    try:
        arguments = parse(words)
        status = importlib.import_module(COMMANDS[arguments.command][0]).run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return fail(f'{error.name} is not installed; expected the extra packages: pip install "triton_attn[{extra}]"')
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        from .train.errors import UserError

        if not isinstance(error, UserError):
            raise  # a fault of ours, which needs its traceback
        return fail(str(error), error.alone)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        return fail(f"{place}{error.strerror}", alone=True)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Only the chosen command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="triton-attn", description="Train, evaluate and look into convolutional networks with attention."
    )
    from .version import __version__

    parser.add_argument("--version", action="version", version=f"triton_attn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, options, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
        )
        if name in words[:1]:
            importlib.import_module(options or module).add_arguments(command)
    return parser.parse_args(join_positions(words))


def join_positions(words: Sequence[str]) -> list[str]:
    """``--at -1,5`` as ``--at=-1,5``."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--at" and POSITION.match(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def fail(message: str, alone: bool = False) -> int:
    """Say what is wrong, in one line and once, however many processes there are; ``alone`` in all of them."""
    if alone or os.environ.get("RANK", "0") == "0":
        from .train.errors import printable

        print(f"triton-attn: error: {printable(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
