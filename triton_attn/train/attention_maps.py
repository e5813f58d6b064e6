"""What a network's attention blocks do with one image, read as they run: the numbers behind the sheet."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..explain import outermost_blocks
from ..reference import AttentionBlock, AttentionGate, published
from .points import Point, cell_of

MOST_SITES = 6  # a network with more sites than this shows a few of them by default
MOST_CHOSEN = 8
GATES = (AttentionGate, published.AttentionGate, published.GridAttentionGate)  # by a signal of their own, or not


@dataclass(frozen=True)
class Panel:
    """One map to draw: values ``(H, W)``, what they are, and the cell they are seen from (non-local alone)."""

    title: str
    values: Tensor
    cell: Point | None = None
    points: tuple[int, ...] = ()


@dataclass(frozen=True)
class SiteAttention:
    """What one block does with one image ``(C, H, W)``: its panels, and where it gates channels, all gates ``(C,)``."""

    site: str
    block: str
    shape: tuple[int, int, int]
    panels: list[Panel]
    gates: Tensor | None = None
    gates_name: str = ""
    strongest: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """What a network does with one image: its logits, and the attention at every site, in the order of the calls."""

    logits: Tensor
    sites: list[SiteAttention]


def site_name(path: str) -> str:
    """``attention.stem`` -> ``stem``, ``layer1.0.attention`` -> ``layer1.0``: the name that a person uses."""
    parts = [part for part in path.split(".") if part != "attention"]
    return ".".join(parts) or "(itself)"


def attention_sites(model: nn.Module) -> dict[str, AttentionBlock]:
    """The attention blocks of a network by site name; a block that lies at two places counts once."""
    sites: dict[str, AttentionBlock] = {}
    for path, block in outermost_blocks(model):
        if not any(block is known for known in sites.values()):
            sites[site_name(path)] = block
    return sites


def choose_sites(names: Sequence[str], patterns: Sequence[str] = ()) -> list[str]:
    """The sites to show: those that match a pattern, or by default all of a few, and a few of many.

    Of more than six sites the default takes those outside of the residual blocks and the last block of every stage.

    Args:
        names: every site of the network, in order.
        patterns: shell patterns (``stem``, ``layer4.*``); each must match a site.

    Raises:
        ValueError: there are no sites, or a pattern matches none; the known ones are named.
    """
    if not names:
        raise ValueError("the model has no attention block, and so no attention to show")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"site {pattern!r} is not in this model (its sites: {', '.join(names)})")
    if patterns:
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if len(names) <= MOST_SITES:
        return list(names)
    last = {name.split(".")[0]: name for name in names if "." in name}
    chosen = [name for name in names if "." not in name or name in last.values()]
    if len(chosen) > MOST_CHOSEN:
        steps = torch.linspace(0, len(chosen) - 1, MOST_CHOSEN).round().int().tolist()
        chosen = [chosen[step] for step in steps]
    return chosen


@torch.no_grad()
def read_attention(
    model: nn.Module,
    image: Tensor,
    points: Sequence[Point],
    *,
    sites: Sequence[str] | None = None,
    channels: int = 4,
) -> Reading:
    """Run a network on one image, in evaluation mode, and read the attention at its sites meanwhile.

    Nothing stays behind: hooks are removed, modes restored. Each site keeps its panels and gates alone; of a
    non-local block the rows of the chosen points are computed, never the whole matrix.

    Args:
        model: the network.
        image: ``(3, H, W)``, normalized as the network expects it.
        points: pixels ``(y, x)`` of the image, from which non-local attention is seen.
        sites: names from :func:`attention_sites`; None means all.
        channels: how many of the strongest channels to show.
    """
    found: list[SiteAttention] = []
    blocks = attention_sites(model)
    parameter = next(model.parameters(), image)
    training = {each: each.training for each in model.modules()}

    def reader(site: str) -> Callable[..., None]:
        def read(block: AttentionBlock, inputs: tuple, kwargs: Mapping) -> None:
            found.append(read_block(site, block, inputs, kwargs, image.shape[-2:], points, channels))

        return read

    with contextlib.ExitStack() as stack:
        for site in blocks if sites is None else sites:
            stack.callback(blocks[site].register_forward_pre_hook(reader(site), with_kwargs=True).remove)
        model.eval()
        try:
            logits = model(image[None].to(parameter.device, parameter.dtype))
        finally:
            for each, mode in training.items():
                each.training = mode
    return Reading(logits[0].float().cpu(), found)


def read_block(
    site: str,
    block: AttentionBlock,
    inputs: Sequence[Tensor],
    kwargs: Mapping[str, Tensor],
    image: Sequence[int],
    points: Sequence[Point],
    channels: int,
) -> SiteAttention:
    """The panels of one block for the input of its forward, a map ``(1, C, H, W)``; arguments as above."""
    given = dict(zip(("x", "gating"), inputs, strict=False)) | dict(kwargs)
    x = given["x"]
    shape = (x.shape[1], x.shape[2], x.shape[3])
    if hasattr(block, "attention_from"):
        return SiteAttention(site, type(block).__name__, shape, list(_seen_from(block, x, image, points)))
    if isinstance(block, GATES):
        maps = {"spatial": block.spatial_gate(x, given.get("gating"))}
    else:
        maps = block.attention_maps(x)
    panels: list[Panel] = []
    gates, name, strongest = None, "", []
    if "spatial" in maps:
        panels.append(Panel("spatial gate", _kept(maps["spatial"][0, 0])))
    if "pixel" in maps:
        gates, name = maps["pixel"][0].float().mean((1, 2)).cpu(), "mean gates"
        panels.append(Panel("gate, mean over channels", _kept(maps["pixel"][0].float().mean(0))))
        strongest = _strongest(gates, channels)
        for c in strongest:
            panels.append(Panel(f"gate of channel {c}\nmean {_signed(gates[c])}", _kept(maps["pixel"][0, c])))
    if "channel" in maps:
        gates, name = maps["channel"][0, :, 0, 0].float().cpu(), "gates"
        strongest = _strongest(gates, channels)
        for c in strongest:
            panels.append(Panel(f"channel {c}\ngate {_signed(gates[c])}", _kept(x[0, c])))
    return SiteAttention(site, type(block).__name__, shape, panels, gates, name, strongest)


def _seen_from(block: Any, x: Tensor, image: Sequence[int], points: Sequence[Point]) -> Iterator[Panel]:
    """One panel per distinct cell: on a small map, several points may lie in one."""
    height, width = x.shape[2:]
    seen: dict[Point, list[int]] = {}
    for index, point in enumerate(points):
        seen.setdefault(cell_of(point, (image[0], image[1]), (height, width)), []).append(index)
    rows = block.attention_from(x, list(seen))
    for row, (cell, indices) in zip(rows.unbind(1), seen.items(), strict=True):
        values = _kept(row[0])
        where = "from " + ", ".join(str(index + 1) for index in indices)
        if len(indices) == 1:
            where += ", at {},{}".format(*points[indices[0]])
        times = float(values.max()) * height * width
        yield Panel(f"{where}\npeak {times:.3g}× even", values, cell, tuple(indices))


def _strongest(gates: Tensor, most: int) -> list[int]:
    """The channels with the largest gates, by size: some gates have a sign."""
    return torch.argsort(gates.abs(), descending=True, stable=True)[:most].tolist()


def _kept(values: Tensor) -> Tensor:
    return values.detach().float().cpu().clone()


def _signed(gate: Tensor) -> str:
    return f"{float(gate):.3f}".replace("-", "−")
