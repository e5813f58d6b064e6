"""What a run reports: ``metrics.csv``, TensorBoard and the curves."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ..files import clear_leftovers, write_bytes, write_text

Row = dict[str, Any]
"""One epoch: its number (from 1), losses, accuracies (0 to 1), learning rate, images per second, seconds, time; with a
moving average of the weights also its held-out loss and accuracy."""

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
AVERAGED = ("ema_loss", "ema_accuracy")
"""The columns behind these, where the average of the weights is evaluated."""

FOLDER, EVENTS = "tensorboard", "events.out.tfevents.triton_attn"
DRAW_EVERY = 30.0
"""Seconds between two drawings of the curves: a short epoch should not wait for them."""


class Log:
    """Writes everything from the history of the run, so that after a kill nothing is missing or there twice."""

    def __init__(self, output: Path, history: Sequence[Row]) -> None:
        self.output, self.history = output, list[Row]()
        self.drawn, self.shown = 0.0, 0  # when, and how many epochs
        clear_leftovers(output / FOLDER)
        self.events = io.BytesIO()
        RecordWriter(self.events).write(Event(file_version="brain.Event:2").SerializeToString())
        for row in history:
            self._keep(row)

    def close(self) -> None:
        """Bring everything up to date."""
        if self.history:
            self._write()
            if self.shown != len(self.history):
                self.draw()

    def add(self, row: Row) -> None:
        """Report an epoch whose state is saved."""
        self._keep(row)
        self._write()
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self.draw()

    def write_csv(self) -> None:
        text = io.StringIO()
        columns = [*COLUMNS, *(name for name in AVERAGED if name in self.history[0])]
        table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        write_text(self.output / "metrics.csv", text.getvalue())

    def draw(self) -> None:
        from .plots import draw_curves

        draw_curves(self.output / "curves.png", self.history)
        self.drawn, self.shown = time.monotonic(), len(self.history)

    def _keep(self, row: Row) -> None:
        self.history.append(row)
        records = RecordWriter(self.events)
        for name in (name for name in (*COLUMNS[1:], *AVERAGED) if name in row):
            group, _, rest = name.partition("_") if name.startswith(("train", "val", "ema")) else ("run", "", name)
            value = Summary.Value(tag=f"{group}/{rest}", simple_value=row[name])
            event = Event(wall_time=row["time"], step=row["epoch"], summary=Summary(value=[value]))
            records.write(event.SerializeToString())

    def _write(self) -> None:
        self.write_csv()
        # Whole as everything else, where TensorBoard's own writer adds to a file, in a thread that a full disk ends.
        folder = self.output / FOLDER
        folder.mkdir(exist_ok=True)
        write_bytes(folder / EVENTS, self.events.getvalue())
