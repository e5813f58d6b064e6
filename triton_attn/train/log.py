"""What a run reports: ``metrics.csv``, TensorBoard and the curves."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ..files import write_text

Row = dict[str, Any]
"""One epoch: its number (from 1), losses, accuracies (0 to 1), learning rate, images per second, seconds, time."""

COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "images_per_second",
    "seconds",
)
DRAW_EVERY = 30.0
"""Seconds between two drawings of the curves: a short epoch should not wait for them."""


class Log:
    """Writes everything from the history of the run, so that after a kill nothing is missing or there twice."""

    def __init__(self, output: Path, history: Sequence[Row]) -> None:
        self.output, self.history = output, list(history)
        self.drawn = 0.0
        # What an earlier process of this run wrote is void: all of it is written again.
        self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=0)
        for row in self.history:
            self._to_tensorboard(row)

    def close(self) -> None:
        """Bring everything up to date."""
        self.writer.close()
        if self.history:
            self.write_csv()
            self.draw()

    def add(self, row: Row) -> None:
        """Report an epoch whose state is saved."""
        self.history.append(row)
        self.write_csv()
        self._to_tensorboard(row)
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self.draw()

    def write_csv(self) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        write_text(self.output / "metrics.csv", text.getvalue())

    def draw(self) -> None:
        from .plots import draw_curves

        draw_curves(self.output / "curves.png", self.history)
        self.drawn = time.monotonic()

    def _to_tensorboard(self, row: Row) -> None:
        for name in COLUMNS[1:]:
            group, _, rest = name.partition("_") if name.startswith(("train", "val")) else ("run", "", name)
            self.writer.add_scalar(f"{group}/{rest}", row[name], row["epoch"], walltime=row["time"])
        self.writer.flush()
