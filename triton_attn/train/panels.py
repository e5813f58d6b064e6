"""One panel of the sheet: a map over its image with a bar of its true values, or the line of all gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from .attention_maps import Panel, SiteAttention

COLOURS = "viridis"
OPACITY = 0.62
ACCENT, LINE, FAINT = "#d1495b", "#3b528b", "#777777"
TITLE_SIZE = 7.5
MOST_GRID = 16  # cells along a side up to which lines are drawn between them


def draw_map(axes: Axes, image: Tensor, panel: Panel, points: Sequence[tuple[int, int]]) -> ScalarMappable:
    """Draw a panel's map over its image ``(3, H, W)``, and return what a colour bar needs.

    Cells are drawn as they are, never smoothed: a 2×2 map is four squares.
    """
    height, width = image.shape[1:]
    place: dict[str, Any] = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    # The image recedes to a pale grey, so that the colours above it stay close to those of the bar.
    axes.imshow(0.35 + 0.6 * image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1, **place)
    low, high = limits(panel.values)
    if low == high:
        low, high = low - 1, high + 1
    drawn = axes.imshow(panel.values.numpy(), cmap=COLOURS, vmin=low, vmax=high, alpha=OPACITY, **place)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axes.set_title(panel.title, fontsize=TITLE_SIZE, loc="left", pad=3)
    down, across = panel.values.shape
    if max(down, across) <= MOST_GRID:
        lines: dict[str, Any] = {"color": "white", "lw": 0.4, "alpha": 0.6}
        for row in range(1, down):
            axes.axhline(row * height / down, **lines)
        for column in range(1, across):
            axes.axvline(column * width / across, **lines)
    if panel.cell is not None:
        row, column = panel.cell
        w, h = width / across, height / down
        frame = Rectangle((column * w, row * h), w, h, fill=False, edgecolor=ACCENT, lw=1.4, clip_on=False)
        axes.add_patch(frame)
        outline = [withStroke(linewidth=3.2, foreground=ACCENT)]
        for y, x in (points[index] for index in panel.points):
            axes.plot(x + 0.5, y + 0.5, "+", color="white", ms=7, mew=1.3, clip_on=False, path_effects=outline)
    return drawn


def draw_scale(axes: Axes, drawn: ScalarMappable, values: Tensor) -> None:
    """Draw the colour bar with the map's true values; only the value where it is the same everywhere."""
    low, high = limits(values)
    if low == high:
        axes.axis("off")
        word = numbers([low])[0] if bool(torch.isfinite(values).any()) else "not finite"
        axes.text(0, 0.5, word + ("\neverywhere" if values.numel() > 1 else ""), fontsize=6.5, color=FAINT, va="center")
        return
    bar = axes.figure.colorbar(drawn, cax=axes)
    if bar.solids is not None:
        bar.solids.set_alpha(0.85)
    bar.outline.set_visible(False)
    ticks = [low, (low + high) / 2, high]
    bar.set_ticks(ticks, labels=numbers(ticks))


def draw_gates(axes: Axes, site: SiteAttention) -> None:
    """Draw all gates of a site, sorted, as a line; the channels that have panels are marked."""
    assert site.gates is not None
    order = torch.argsort(site.gates, descending=True, stable=True)
    rank = {channel: index + 1 for index, channel in enumerate(order.tolist())}
    axes.plot(range(1, len(order) + 1), site.gates[order].numpy(), color=LINE, lw=1.4)
    axes.plot([rank[c] for c in site.strongest], site.gates[site.strongest].numpy(), "o", color=ACCENT, ms=3)
    axes.set_title(f"{site.gates_name} of all\n{len(order)} channels, sorted", fontsize=TITLE_SIZE, loc="left", pad=3)
    axes.set_xticks(sorted({1, len(order)}))
    axes.spines[["top", "right"]].set_visible(False)
    low, high = limits(site.gates)
    if low < high:
        axes.set_yticks([low, (low + high) / 2, high], labels=numbers([low, (low + high) / 2, high]))
    else:
        axes.set_yticks([low], labels=numbers([low]))


def limits(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest finite value, or two zeros."""
    finite = values[torch.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)


def numbers(ticks: Sequence[float]) -> list[str]:
    """The ticks as short text, with one exponent for all, and digits enough to tell them apart."""
    largest = max(abs(tick) for tick in ticks)
    exponent = 0
    if largest > 0 and not 1e-2 <= largest < 1e4:
        exponent = 3 * math.floor(math.log10(largest) / 3)
    scaled = [tick / 10.0**exponent for tick in ticks]
    span = max(scaled) - min(scaled)
    digits = max(0, min(5, 2 - math.floor(math.log10(span)))) if span > 0 else 3
    power = f"e{exponent}" if exponent else ""
    return [f"{tick:.{digits}f}{power}".replace("-", "−") for tick in scaled]
