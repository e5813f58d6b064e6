"""The pictures of the performance page, each from result files, as PNG and SVG."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triton_attn.files import new_file

Draw = Callable[[Any], None]  # into a figure

# Okabe and Ito's colours, which people who see few colours can tell apart.
COLOURS = {
    "ours": "#0072B2",
    "ours-compile": "#56B4E9",
    "eager": "#E69F00",
    "formula": "#E69F00",
    "compile": "#D55E00",
    "timm": "#009E73",
    "sdpa": "#CC79A7",
    "flex": "#999999",
}
OTHERS = ("#CC79A7", "#999999", "#F0E442", "#000000", "#56B4E9")
WORDS = {
    "ours": "triton_attn",
    "ours-compile": "triton_attn, compiled",
    "eager": "eager PyTorch",
    "formula": "the plain formula",
    "compile": "torch.compile",
    "sdpa": "scaled_dot_product_attention",
    "flex": "FlexAttention",
}


def words(provider: str) -> str:
    """A provider as a legend calls it."""
    return WORDS.get(provider, provider)


def colour(provider: str, providers: Sequence[str]) -> str:
    """A provider's colour, the same in all pictures where it has one of its own."""
    unnamed = [each for each in providers if each not in COLOURS]
    return COLOURS[provider] if provider in COLOURS else OTHERS[unnamed.index(provider) % len(OTHERS)]


def digest(data: Any) -> str:
    """What tells the data of a picture from others."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def save(path: Path, draw: Draw, size: tuple[float, float], note: str) -> None:
    """Draw a figure into ``path``.png and .svg, the same bytes for the same data; ``note`` stands under it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {"svg.hashsalt": path.name, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure = pyplot.figure(figsize=size, layout="constrained")
        draw(figure)
        figure.supxlabel(note, fontsize=7, color="#555555")
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            with new_file(path.with_suffix(suffix)) as file:
                figure.savefig(file, dpi=130, metadata=metadata)
        pyplot.close(figure)


def grouped_bars(axes: Any, groups: Sequence[str], values: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """Bars side by side: for every group one of each provider that has a value there."""
    providers = list(values)
    width = 0.8 / max(len(providers), 1)
    for i, provider in enumerate(providers):
        at = [j for j, group in enumerate(groups) if group in values[provider]]
        axes.bar(
            [j + (i - (len(providers) - 1) / 2) * width for j in at],
            [values[provider][groups[j]] for j in at],
            width=0.92 * width,
            color=colour(provider, providers),
            label=words(provider),
        )
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axes.set_ylabel(unit)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.axhline(0, color="#000000", linewidth=0.8)


def traffic(data: Mapping[str, Mapping[str, Sequence[float]]]) -> Draw:
    """Passes over the map by block: ``data[provider][block]`` is forward and backward."""

    def draw(figure: Any) -> None:
        for axes, i, title in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("forward", "backward"), strict=True):
            blocks = list(next(iter(data.values())))
            values = {who: {block: each[i] for block, each in found.items()} for who, found in data.items()}
            grouped_bars(axes, blocks, values, "T, passes over the map" if i == 0 else "")
            axes.set_title(title)
        axes.legend(frameon=False)

    return draw


def tax(data: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Draw:
    """The tax in percent: ``data[title][provider][attention]``."""

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(1, len(data), squeeze=False)[0]
        for axes, (title, values) in zip(all_axes, data.items(), strict=True):
            groups = list(dict.fromkeys(group for each in values.values() for group in each))
            percent = {who: {group: 100 * tax for group, tax in each.items()} for who, each in values.items()}
            grouped_bars(axes, groups, percent, "time over the plain network's, %" if axes is all_axes[0] else "")
            axes.set_title(title)
        all_axes[0].legend(frameon=False)

    return draw


def growth(times: Mapping[str, Mapping[int, float]], memory: Mapping[str, Mapping[int, float]], title: str) -> Draw:
    """Milliseconds and megabytes against the positions of the map, both logarithmic."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for axes, found, unit in ((left, times, "time, ms"), (right, memory, "memory beside the inputs, MB")):
            for provider, points in found.items():
                shade = colour(provider, list(found))
                axes.plot(list(points), list(points.values()), "o-", color=shade, label=words(provider), markersize=4)
            positions = sorted({size for points in found.values() for size in points})
            axes.set(xscale="log", yscale="log", xlabel="positions of the map", ylabel=unit)
            axes.set_xticks(positions, [f"{round(size**0.5)}²" for size in positions])
            axes.minorticks_off()
            axes.grid(color="#dddddd")
        left.set_title(title, loc="left")
        left.legend(frameon=False)

    return draw
