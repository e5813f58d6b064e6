"""The sheet: every image with its prediction, and beside it one row of panels per attention site, as one figure.

All sizes are in inches from the upper left corner, so that margins and gaps are the same on every sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from ..files import new_file
from .attention_maps import Reading, SiteAttention
from .errors import UserError
from .letters import drawable, letters_for
from .panels import ACCENT, FAINT, draw_gates, draw_map, draw_scale

DPI = 110
MARGIN, HEADER, HEADER_LINE = 0.35, 0.53, 0.16
LEFT = 2.35  # the column of the image and its prediction
IMAGE, IMAGE_HEIGHT, BAR, MOST_CLASSES = 1.6, 2.35, 0.32, 3
PANEL, PITCH, COLUMNS = 1.5, 2.2, 6
SITE_TITLE, TITLE_LINE, PANEL_GAP, GROUP_GAP = 0.24, 0.13, 0.2, 0.3
MOST_PIXELS = 30_000  # matplotlib and many viewers end at 2**15 or 2**16

INK = "#222222"
STYLE = {
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
}


@dataclass(frozen=True)
class Group:
    """One image ``(3, H, W)`` in 0 … 1 with its name, the pixels it is looked at from, and what was read."""

    name: str
    image: Tensor
    points: Sequence[tuple[int, int]]
    reading: Reading
    classes: Sequence[str]


def draw_sheet(groups: Sequence[Group], title: str, note: str = "") -> Figure:
    """Draw the groups below one another.

    Raises:
        UserError: the sheet would be higher than image viewers take.
    """
    sites = [site for group in groups for site in group.reading.sites]
    columns = max((min(_count(site), COLUMNS) for site in sites), default=0)
    width = 2 * MARGIN + LEFT + PITCH * max(columns, 3)
    about = [words for words in (note, legend(sites)) if words]
    top = MARGIN + HEADER + HEADER_LINE * len(about)
    height = top + sum(_group_height(group) + GROUP_GAP for group in groups)
    if height * DPI > MOST_PIXELS:
        raise UserError(
            f"IMAGE: a sheet of {len(groups)} images and {len(sites)} rows would be {height * DPI:.0f} pixels high, "
            f"expected at most {MOST_PIXELS}: give fewer images or sites"
        )
    names = [name for group in groups for name in (group.name, *group.classes)]
    with matplotlib.style.context(["default", STYLE]), letters_for([title, note, *names]):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        page = Page(figure)
        page.text(MARGIN, 0.45, _short(title, int(width * 8)), size=12, weight="bold")
        for line, words in enumerate(about):
            page.text(MARGIN, 0.66 + HEADER_LINE * line, _short(words, int(width * 15)), size=7.5, color=FAINT)
        for group in groups:
            _draw_group(page, group, top)
            top += _group_height(group) + GROUP_GAP
    return figure


def legend(sites: Sequence[SiteAttention]) -> str:
    """What the panels on the sheet show, in a line."""
    parts = []
    if any(panel.cell is not None for site in sites for panel in site.panels):
        parts.append("from N: how much the framed cell looks at every other (even: 1 / number of cells)")
    if any(site.gates_name == "gates" for site in sites):
        parts.append("channel N: its map before the gate (of the largest gates)")
    if any(site.gates_name == "mean gates" for site in sites):
        parts.append("gate of channel N: its gates (of the largest means)")
    return " · ".join(parts)


def save_sheet(figure: Figure, path: Path) -> tuple[int, int]:
    """Write the figure as PNG, whole or not at all.

    Returns:
        Width and height in pixels.

    Raises:
        OSError: the file cannot be written.
    """
    with new_file(path) as temporary, matplotlib.style.context(["default", STYLE]):
        figure.savefig(temporary, format="png")
    width, height = figure.canvas.get_width_height()
    return width, height


class Page:
    """A figure that takes places in inches from its upper left corner."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.width, self.height = figure.get_size_inches()

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, baseline: float, words: str, **style: Any) -> float:
        """Write a line, and return where it ends."""
        text = self.figure.text(left / self.width, 1 - baseline / self.height, words, va="baseline", **style)
        return float(text.get_window_extent().x1) / self.figure.dpi


def _count(site: SiteAttention) -> int:
    """How many panels a row has; the line of gates is one."""
    return len(site.panels) + (site.gates is not None)


def _title_height(site: SiteAttention) -> float:
    lines = max((panel.title.count("\n") + 1 for panel in site.panels), default=1)
    return TITLE_LINE * max(lines, 2 if site.gates is not None else 1) + 0.08


def _row_height(site: SiteAttention) -> float:
    return SITE_TITLE + math.ceil(_count(site) / COLUMNS) * (_title_height(site) + PANEL + PANEL_GAP)


def _group_height(group: Group) -> float:
    predicted = IMAGE_HEIGHT + BAR * min(MOST_CLASSES, len(group.classes))
    return max(predicted, sum(_row_height(site) for site in group.reading.sites))


def _draw_group(page: Page, group: Group, top: float) -> None:
    ends = [MARGIN / page.width, 1 - MARGIN / page.width]
    page.figure.add_artist(Line2D(ends, [1 - (top - 0.12) / page.height] * 2, color="#cccccc", lw=0.8))
    page.text(MARGIN, top + 0.15, _short(group.name, 26), size=9, weight="bold")
    _draw_image(page, group, top + 0.4)
    _draw_prediction(page, group, top + IMAGE_HEIGHT)
    for site in group.reading.sites:
        _draw_site(page, group, site, top)
        top += _row_height(site)


def _draw_image(page: Page, group: Group, top: float) -> None:
    height, width = group.image.shape[1:]
    axes = page.axes(MARGIN + 0.25, top, *_fit(width, height, IMAGE))
    axes.imshow(group.image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0), interpolation="nearest")
    axes.set_xticks([0, width // 2, width])
    axes.set_yticks([0, height // 2, height])
    if any(panel.cell is not None for site in group.reading.sites for panel in site.panels):
        outline = [withStroke(linewidth=2.2, foreground=ACCENT)]
        for number, (y, x) in enumerate(group.points, start=1):
            axes.text(
                x + 0.5,
                y + 0.5,
                str(number),
                color="white",
                weight="bold",
                ha="center",
                va="center_baseline",
                path_effects=outline,
            )


def _draw_prediction(page: Page, group: Group, top: float) -> None:
    probabilities = torch.softmax(group.reading.logits, 0)
    left, right = MARGIN + 0.25, MARGIN + 0.25 + IMAGE
    for rank, index in enumerate(torch.argsort(probabilities, descending=True)[:MOST_CLASSES].tolist()):
        share = float(probabilities[index])
        line = top + BAR * rank
        weight, color = ("bold", ACCENT) if rank == 0 else ("normal", "#9a9a9a")
        page.text(left, line + 0.12, _short(group.classes[index], 18), size=8, weight=weight)
        page.text(right, line + 0.12, f"{100 * share:.1f} %", size=8, weight=weight, ha="right")
        bar = page.axes(left, line + 0.16, IMAGE, 0.06)
        bar.barh(0, share if math.isfinite(share) else 0, color=color, height=1)
        bar.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[], yticks=[], facecolor="#eeeeee")
        bar.spines[:].set_visible(False)


def _draw_site(page: Page, group: Group, site: SiteAttention, top: float) -> None:
    channels, map_height, map_width = site.shape
    left = MARGIN + LEFT
    end = page.text(left, top + 0.15, _short(site.site, 40), size=9, weight="bold")
    about = f"{site.block}, {channels} channels, map {map_height}×{map_width}"
    page.text(end + 0.12, top + 0.15, about, size=8, color=FAINT)
    height, width = group.image.shape[1:]
    across, down = _fit(width, height, PANEL)
    for index in range(_count(site)):
        line, column = divmod(index, COLUMNS)
        x = left + column * PITCH
        y = top + SITE_TITLE + _title_height(site) + line * (_title_height(site) + PANEL + PANEL_GAP)
        if index == len(site.panels):
            draw_gates(page.axes(x + 0.35, y, PANEL, PANEL - 0.1), site)
            continue
        panel = site.panels[index]
        drawn = draw_map(page.axes(x, y, across, down), group.image, panel, group.points)
        draw_scale(page.axes(x + across + 0.06, y, 0.07, down), drawn, panel.values)


def _fit(width: float, height: float, size: float) -> tuple[float, float]:
    """The largest width and height of that shape within a square of ``size``."""
    longest = max(width, height)
    return size * width / longest, size * height / longest


def _short(words: str, most: int) -> str:
    words = drawable(words)
    return words if len(words) <= most else words[: most - 1] + "…"
