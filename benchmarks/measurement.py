"""One case measured: its providers made ready one by one, checked, and timed in turns.

A provider that fails leaves the others their turn. What is short of memory or of time, and a GPU that answers no more,
is told apart from that.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch

from benchmarks.memory import peak_bytes
from benchmarks.timing import WARM_UP, CpuClock, measure, quartiles
from triton_attn import backend

Run = Callable[[], Any]
OURS = ("ours", "ours-compile")
SECONDS_A_CASE = 1.0  # of timing; a case with long runs gets fewer rounds
LEAST_ROUNDS, MOST_ROUNDS = 7, 200
LATE = "the time limit is spent"
ENDED = "the process ended while it was measured"
NOT_YET = (LATE, ENDED)  # reasons that say nothing of a provider


class NotServed(Exception):
    """A provider has nothing of its own for a case."""


class DeviceLost(Exception):
    """The GPU is in error: this process can measure nothing more. ``record`` is what it has of the case."""

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


@dataclass
class Prepared:
    """A case made ready: by provider a function that makes the thing to time, after its result was checked.

    ``extra`` says what else the file is to have, given the runs and their samples.
    """

    makers: Mapping[str, Callable[[], Run]]
    extra: Callable[[Mapping[str, Run], Mapping[str, list[float]]], dict[str, Any]] = lambda _, __: {}
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a provider is called in the results, if not by its name."""


def not_measured(case: Any, labels: Sequence[str], why: str) -> dict[str, Any]:
    """The record of a case none of whose providers was timed."""
    return _record(case, {}, {}, dict.fromkeys(labels, why))


def _record(
    case: Any, samples: Mapping[str, list[float]], peaks: Mapping[str, int | None], refused: Mapping[str, str]
) -> dict[str, Any]:
    return {
        **asdict(case),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": len(next(iter(samples.values()), [])),
        "seconds": {label: quartiles(each) for label, each in samples.items()},
        "ours_over": paired(samples),
        "peak_bytes": dict(peaks),
        "not_timed": dict(refused),
    }


def measure_case(
    case: Any,
    prepared: Prepared,
    providers: Sequence[str],
    clock: CpuClock,
    device: torch.device,
    *,
    rounds: int | None = None,
    end: float | None = None,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The record of a case, and its samples by label.

    Args:
        case: a dataclass, whose fields the record has.
        prepared, providers: what makes the runs, and whose are wanted.
        clock, device: what to time by, and where the runs are.
        rounds: how often each runs; None goes by time.
        end: the time, as ``time.time()``, after which no further provider is made ready.

    Raises:
        DeviceLost: the GPU answers no more.
    """
    runs: dict[str, Run] = {}
    peaks: dict[str, int | None] = {}
    refused: dict[str, str] = {}
    samples: dict[str, list[float]] = {}
    try:
        for provider in providers:
            label = prepared.labels.get(provider, provider)
            if end is not None and time.time() > end:
                refused[label] = LATE
                continue
            try:
                run = prepared.makers[provider]()
                run()
                peaks[label] = None if backend.interpreting() else peak_bytes(run, device)
                runs[label] = run
            except Exception as error:  # out of memory, refused or wrong: the others are measured all the same
                refused[label] = words(error)
            free(device)
        least = getattr(case, "least_rounds", LEAST_ROUNDS)
        samples = _timed(runs, clock, rounds, least, peaks, refused)
        record = {**_record(case, samples, peaks, refused), **prepared.extra(runs, samples)}
        runs.clear()
        free(device)
    except torch.AcceleratorError as error:
        for provider in providers:
            label = prepared.labels.get(provider, provider)
            if label not in samples:
                refused.setdefault(label, f"the GPU answered no more: {words(error)}")
        raise DeviceLost(words(error), _record(case, samples, peaks, refused)) from error
    return record, samples


def _timed(
    runs: dict[str, Run],
    clock: CpuClock,
    rounds: int | None,
    least: int,
    peaks: Mapping[str, int | None],
    refused: dict[str, str],
) -> dict[str, list[float]]:
    """The samples of all; where they have no room beside each other, without the one that takes the most."""
    while runs:
        try:
            if rounds is not None:
                # The interpreter is as slow the first time.
                return measure(runs, clock, rounds, warm_up=1 if backend.interpreting() else WARM_UP)
            first = sum(map(min, measure(runs, clock, 1, warm_up=1).values()))
            fitting = min(max(int(SECONDS_A_CASE / first), least), MOST_ROUNDS)
            # What takes so long that few rounds fit is warm by now.
            return measure(runs, clock, fitting, warm_up=1 if fitting == least else WARM_UP)
        except torch.OutOfMemoryError as error:
            largest = max(runs, key=lambda label: peaks[label] or 0)
            del runs[largest]
            refused[largest] = f"beside the others: {words(error)}"
    return {}


def words(error: BaseException) -> str:
    """An error in a line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def paired(samples: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Quartiles, over rounds, of ours' seconds over every other's in the same round; above 1 ours is slower.

    What the machine does meanwhile it does to both.
    """
    own = next((label for label in OURS if label in samples), None)
    if own is None:
        return {}
    return {
        label: quartiles([ours / theirs for ours, theirs in zip(samples[own], each, strict=True)])
        for label, each in samples.items()
        if label != own
    }


def free(device: torch.device) -> None:
    """Give back what nothing holds, before the next provider measures its memory; finds out whether the GPU answers."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
