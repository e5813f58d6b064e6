"""The pictures of the performance page, each from result files, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triton_attn.files import new_file

Draw = Callable[[Any], None]  # into a figure
Series = Mapping[str, Mapping[Any, float]]  # by provider

# What a legend calls a provider, and its colour: Okabe and Ito's, which people who see few colours can tell apart.
PROVIDERS = {
    "ours": ("triton_attn", "#0072B2"),
    "ours-compile": ("triton_attn, compiled", "#56B4E9"),
    "eager": ("eager PyTorch", "#E69F00"),
    "formula": ("the plain formula", "#E69F00"),
    "compile": ("torch.compile", "#D55E00"),
    "timm": ("timm", "#009E73"),
    "sdpa": ("scaled_dot_product_attention", "#CC79A7"),
    "flex": ("FlexAttention", "#999999"),
}
OTHERS = ("#CC79A7", "#999999", "#F0E442", "#000000", "#56B4E9")


def words(provider: str) -> str:
    """A provider as a legend calls it."""
    return PROVIDERS[provider][0] if provider in PROVIDERS else provider


def looks(provider: str, providers: Sequence[str]) -> dict[str, str]:
    """A provider's name and colour, the same in all pictures where it has a colour of its own."""
    others = [each for each in providers if each not in PROVIDERS]
    shade = PROVIDERS[provider][1] if provider in PROVIDERS else OTHERS[others.index(provider) % len(OTHERS)]
    return {"color": shade, "label": words(provider)}


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


def tax(data: Mapping[str, Series]) -> Draw:
    """The tax in percent, as bars side by side: ``data[title][provider][attention]``."""

    def draw(figure: Any) -> None:
        all_axes = figure.subplots(1, len(data), squeeze=False)[0]
        for axes, (title, values) in zip(all_axes, data.items(), strict=True):
            groups = list(dict.fromkeys(group for each in values.values() for group in each))
            width = 0.8 / len(values)
            for i, (provider, paid) in enumerate(values.items()):
                at = [groups.index(group) + (i - (len(values) - 1) / 2) * width for group in paid]
                axes.bar(at, [100 * each for each in paid.values()], width=0.92 * width, **looks(provider, [*values]))
            axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
            axes.grid(axis="y", color="#dddddd")
            axes.set_axisbelow(True)
            axes.axhline(0, color="#000000", linewidth=0.8)
            axes.set_title(title)
        all_axes[0].set_ylabel("time over the plain network's, %")
        all_axes[0].legend(frameon=False)

    return draw


def growth(times: Series, memory: Series, title: str) -> Draw:
    """Milliseconds and megabytes against the positions of the map, both logarithmic."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for axes, found, unit in ((left, times, "time, ms"), (right, memory, "memory beside the inputs, MB")):
            for provider, points in found.items():
                axes.plot(list(points), list(points.values()), "o-", markersize=4, **looks(provider, [*found]))
            positions = sorted({size for points in found.values() for size in points})
            axes.set(xscale="log", yscale="log", xlabel="positions of the map", ylabel=unit)
            axes.set_xticks(positions, [f"{round(size**0.5)}²" for size in positions])
            axes.minorticks_off()
            axes.grid(color="#dddddd")
        left.set_title(title, loc="left")
        left.legend(frameon=False)

    return draw
