"""``triton-attn show``: where a trained network's attention looks, drawn on one PNG sheet."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import backend
from .attention_maps import attention_sites, choose_sites, read_attention
from .errors import UserError, as_user_error
from .points import GRID, parse_points
from .values import check_paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

DIGIT = "digits:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``triton-attn show``."""
    parser.description = (
        "Draw the attention of a trained network on images, as one PNG sheet: spatial gates over the image, the "
        "channels with the largest gates, and for non-local blocks where chosen positions look."
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a .safetensors file of triton-attn train, or the folder of a run",
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="an image file, or digits:INDEX for one of scikit-learn's digits",
    )
    parser.add_argument(
        "--at",
        metavar="Y,X",
        action="append",
        help="where non-local attention is seen from: whole numbers are pixels of the image as it is drawn on the "
        "sheet, from the top left (-1,5 is in the last row); numbers with a point are fractions of height and width "
        "(0.5,0.5 is the middle). May be given several times; by default the middle and the middles of the four "
        "quarters",
    )
    parser.add_argument(
        "--output",
        metavar="PNG",
        default="sheet.png",
        help="the file to write or replace (default: %(default)s)",
    )
    parser.add_argument(
        "--channels", metavar="K", type=int, default=4, help="how many channels to show per site (default: %(default)s)"
    )
    parser.add_argument(
        "--site",
        metavar="PATTERN",
        action="append",
        help="show these sites only: a name (stem) or a shell pattern ('layer4.*', '*' for all). May be given several "
        "times; by default all of up to six sites, and of more those outside of the residual blocks and the last block "
        "of every stage",
    )


def run(args: argparse.Namespace) -> int:
    """Write the sheet and say so.

    Raises:
        UserError: something about the arguments or the files, named; no sheet is written then.
    """
    check_paths(args)
    if args.channels < 0:
        raise UserError(f"--channels: expected 0 or more, got {args.channels}")
    output = _output(args.output)
    from .checkpoint import open_checkpoint
    from .sheet import save_sheet
    from .transforms import eval_transform

    file, model, card = open_checkpoint(args.checkpoint)
    size = card.eval_image_size
    points = parse_points(args.at, (size, size)) if args.at else None
    known = sorted(attention_sites(model), key=_in_network)
    with as_user_error(ValueError, prefix="--site: " if known else f"CHECKPOINT: {file}: "):
        sites = choose_sites(known, args.site or ())
    transform = eval_transform(size, card.mean, card.std, card.crop_fraction)
    opened = [open_image(each, card.mode) for each in args.images]
    images = torch.stack([transform(image) for image, _ in opened])

    notes = []
    if len(sites) < len(known):
        notes.append(f"{len(sites)} of {len(known)} sites shown; --site '*' shows all")
    trained = f"{file}, epoch {card.epoch}, {100 * card.val_accuracy:.1f} % of held-out images right"
    # The network is on the CPU, where a picture needs no kernels, whatever the environment asks for.
    with backend.use_backend("reference"):
        figure = attention_sheet(
            model,
            images,
            names=[name for _, name in opened],
            classes=card.classes,
            mean=card.mean,
            std=card.std,
            at=points,
            channels=args.channels,
            sites=sites,
            title=f"{card.model} with {_named(card.attention)}",
            note="; ".join([trained, *notes]),
        )
    with as_user_error(OSError, prefix="--output: cannot be written: "):
        width, height = save_sheet(figure, output)
    count = f"{len(images)} image" + ("s" if len(images) > 1 else "")
    print(f"{output}: {count}, sites {', '.join(sites)}, {width}×{height} pixels")
    if len(sites) < len(known):
        left = [name for name in known if name not in sites]
        print(f"left out: {', '.join(left)} (--site '*' shows all, --site PATTERN those that match)")
    return 0


def attention_sheet(
    model: nn.Module,
    images: Tensor,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    at: Sequence[tuple[int, int]] | None = None,
    channels: int = 4,
    sites: Sequence[str] | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw what a network's attention does with images, one group of rows per image.

    Args:
        model: a network of images ``(N, C, H, W)`` to logits, with attention blocks of this package anywhere in it.
        images: ``(N, C, H, W)``, normalized as the network expects it, of 1, 3 or 4 channels (grey; RGB; RGB and
            opacity, which is not drawn).
        names: what to call the images.
        classes: what to call the classes, in the order of the logits.
        mean, std: what the images were normalized with, per channel, so that they can be drawn.
        at: pixels ``(y, x)`` of the image from which non-local attention is seen; by default the middle and the
            middles of the four quarters.
        channels: how many channels to show per site, those with the largest gates.
        sites: names from :func:`triton_attn.train.attention_maps.attention_sites`; by default all of up to six, and
            a few of more.
        title, note: the first lines of the sheet.

    Returns:
        A matplotlib figure; :func:`triton_attn.train.sheet.save_sheet` writes it.

    Raises:
        ValueError: no images or of another shape, a model without attention, an unknown site, a position outside of
            the image, another number of classes than logits, or more rows than fit on a sheet.
    """
    from .sheet import Group, draw_sheet

    if images.dim() != 4 or images.shape[1] not in (1, 3, 4) or not len(images):
        raise ValueError(
            f"images must be (N, C, H, W) with N of at least 1 and C of 1, 3 or 4, got shape {tuple(images.shape)}"
        )
    size = (images.shape[2], images.shape[3])
    points = list(at) if at else parse_points(GRID, size)
    for y, x in points:
        if not (0 <= y < size[0] and 0 <= x < size[1]):
            raise ValueError(f"at must lie on the {size[0]}×{size[1]} image, got ({y}, {x})")
    known = list(attention_sites(model))
    chosen = choose_sites(known, sites or ())
    groups = []
    for index, image in enumerate(images):
        reading = read_attention(model, image, points, sites=chosen, channels=channels)
        named = list(classes) if classes else [str(number) for number in range(len(reading.logits))]
        if len(named) != len(reading.logits):
            raise ValueError(f"classes must name the model's {len(reading.logits)} classes, got {len(named)} names")
        shown = image.float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        name = names[index] if names else f"image {index}"
        drawn = shown[:3].expand(3, -1, -1).clamp(0, 1)
        groups.append(Group(name, drawn, points, reading, named))
    return draw_sheet(groups, title or f"Attention of {type(model).__name__}", note)


def open_image(source: str, mode: str = "RGB") -> tuple[Image.Image, str]:
    """The image that an argument names, and what to call it; ``mode`` is Pillow's name of the channels to read.

    Raises:
        UserError: no such file, not an image or a broken one, or no such digit.
    """
    from PIL import Image

    if source.startswith(DIGIT):
        from .data import digit_images

        digits = digit_images()
        index = source.removeprefix(DIGIT)
        if not re.fullmatch(r"\d{1,9}", index) or int(index) >= len(digits):
            raise UserError(f"IMAGE: expected {DIGIT}INDEX with an index of 0 to {len(digits) - 1}, got {source!r}")
        image, label = digits[int(index)]
        assert isinstance(image, Image.Image)
        return image, f"{DIGIT}{int(index)} (a {label})"
    from .image import BrokenImage, read_image

    path = Path(source)
    if not os.path.isfile(path):
        what = "it is a folder" if os.path.isdir(path) else "it is no file" if os.path.exists(path) else "no such file"
        raise UserError(f"IMAGE: {source}: {what}; expected an image file or {DIGIT}INDEX")
    try:
        return read_image(path, mode), path.name
    except BrokenImage as error:
        raise UserError(f"IMAGE: {error}; expected an image file (PNG, JPEG, …)") from error


def _output(word: str) -> Path:
    """The path to write, once it is plain that it can be written."""
    path = Path(word)
    if path.suffix.lower() != ".png":
        raise UserError(f"--output: expected the name of a .png file, got {word!r}")
    if os.path.isdir(path):
        raise UserError(f"--output: {word} is a folder; expected the name of a .png file")
    if not os.path.isdir(path.parent):
        raise UserError(f"--output: {word}: there is no folder {path.parent}")
    from .atomic import check_writable

    check_writable(path.parent)
    with as_user_error(OSError, prefix="--output: cannot be written: "), contextlib.suppress(FileNotFoundError):
        path.lstat()  # a name that is too long is found here
    return path


def _in_network(site: str) -> tuple[bool, str, bool]:
    """Sorts a ResNet's sites as an image meets them; the blocks of a stage are in order already."""
    return site != "stem", site.split(".")[0], "." not in site


def _named(attention: Any) -> str:
    if not isinstance(attention, dict):
        return str(attention or "no attention")
    return ", ".join(f"{name} at {site}" for site, name in attention.items())
