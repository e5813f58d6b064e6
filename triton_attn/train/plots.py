"""Pictures of a run: its curves and its confusion matrix. Drawn without pyplot, which keeps state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from ..files import new_file
from .letters import drawable, letters_for, shortened

TRAIN, VAL, INK, FAINT = "#8aa1b8", "#c8451f", "#24303c", "#e3e7eb"
MOST_NAMED = 40
"""Up to this many classes the confusion matrix has its counts and names written in."""

MOST_LETTERS, INCHES_A_LETTER = 24, 0.09
"""Of a name, and how much wider than usual the picture gets for one more."""


def draw_curves(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Loss, accuracy and learning rate by epoch, into a PNG; ``history`` has the rows of ``metrics.csv``."""
    epochs = [row["epoch"] for row in history]
    column = {name: [row[name] for row in history] for name in history[0]}
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, accuracy, lr = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
    _axes(loss, "Loss", epochs)
    _line(loss, epochs, column["train_loss"], TRAIN, "train")
    _line(loss, epochs, column["val_loss"], VAL, "held out")
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False, labelcolor=INK)

    _axes(accuracy, "Accuracy", epochs)
    _line(accuracy, epochs, column["train_accuracy"], TRAIN, "train")
    _line(accuracy, epochs, column["val_accuracy"], VAL, "held out")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    best = int(np.argmax(column["val_accuracy"]))
    peak = column["val_accuracy"][best]
    accuracy.plot(epochs[best], peak, "o", color=VAL, markersize=7, markeredgecolor="white")
    accuracy.set_title(f"best held out: {100 * peak:.2f} % (epoch {epochs[best]})", loc="right", fontsize=9, color=VAL)
    accuracy.legend(frameon=False, labelcolor=INK, loc="lower right")

    _axes(lr, "Learning rate, last step", epochs)
    _line(lr, epochs, column["lr"], INK, None)
    lr.set_ylim(bottom=0)
    lr.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _axes(axes: Axes, title: str, epochs: Sequence[int]) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel("epoch", color=INK)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(color=FAINT)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[:].set_visible(False)


def _line(axes: Axes, x: Sequence[int], y: Sequence[float], color: str, label: str | None) -> None:
    axes.plot(x, y, color=color, linewidth=2, label=label, marker="o" if len(x) < 30 else None, markersize=4)


def draw_confusion(path: Path, counts: Any, classes: Sequence[str], title: str) -> None:
    """A confusion matrix into a PNG: colour is the share of the true class, numbers are counts.

    Args:
        path: where to.
        counts: ``(C, C)`` integers, true class by predicted class.
        classes: the C names, in any script; long ones are cut.
        title: a line above it.
    """
    names = [shortened(drawable(name), MOST_LETTERS) for name in classes]
    with letters_for(names):
        figure = confusion_figure(np.asarray(counts), names, title)
        with new_file(path) as temporary:
            figure.savefig(temporary, dpi=130)


def confusion_figure(counts: Any, names: Sequence[str], title: str) -> Figure:
    """The picture of :func:`draw_confusion`, of names that can be drawn."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = len(names) <= MOST_NAMED
    side = min(max(4.5, 0.52 * len(names) + 1.6), 16) if named else 10
    longest = max(map(len, names)) if named else 0
    margin = max(0, longest - 8) * INCHES_A_LETTER
    figure = Figure(figsize=(side + 0.8 + margin, side + margin), layout="compressed")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    # Of the figure, not of the axes: these may be narrower than the line.
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.spines[:].set_visible(False)
    if named:
        axes.set_xticks(range(len(names)), names, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            if count or row == column:
                color = "white" if share[row, column] > 0.55 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, format=PercentFormatter(1))
    bar.set_label("share of the true class", color=INK)
    bar.outline.set_visible(False)
    return figure
