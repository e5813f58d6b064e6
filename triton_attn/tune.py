"""Tuning: the fastest configs for a network's attention on this GPU, kept for later. ``triton-attn tune`` is the same.

The network runs once without data (PyTorch's fake tensors: the meta device with the layouts of the real one), which
tells how each block is called. Then each of these calls
is made on the GPU, forward and backward, on random numbers, and every launch in it that has configs to choose from is
searched (:mod:`triton_attn.tuning.search`). Parameters and inputs are not looked at, nor changed.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

from . import backend
from .explain import outermost_blocks
from .ops import launch
from .ops.launch import Launch
from .reference import AttentionBlock
from .tuning import selection, spaces, tables
from .tuning.keys import Key
from .tuning.search import Found, search
from .tuning.tables import Entry, NoTableError, Table, TableError


@dataclass(frozen=True)
class Call:
    """A block of the network, and the inputs it is called with, as shapes: they lie on the meta device."""

    block: AttentionBlock
    inputs: dict[str, Tensor]

    def __str__(self) -> str:
        return f"{type(self.block).__name__} on {' and '.join(str(tuple(t.shape)) for t in self.inputs.values())}"

    @property
    def signature(self) -> object:
        """What two calls have in common that start the same launches."""
        shapes = [(name, tuple(t.shape), t.stride(), t.dtype) for name, t in self.inputs.items()]
        return type(self.block), str(self.block), *shapes


@dataclass
class Tuned:
    """What a tuning found: ``print`` shows a table. ``path`` is the file that has it.

    ``kept`` had been searched before, with these versions; for ``left_out`` the budget was too short, and what
    ``failed`` are calls for which there was no memory.
    """

    path: Path
    device: str
    found: dict[Key, Found] = field(default_factory=dict)
    kept: list[Key] = field(default_factory=list)
    left_out: list[Key] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("launch", "configs", "config", "µs", "rule's µs", "rule / config")]
        for key, found in self.found.items():
            config = "the rule's" if found.config == found.rule else changes(found)
            ours, rules = found.seconds * 1e6, found.rule_seconds * 1e6
            tried = str(len(found.timings)) + (f" ({len(found.rejected)} with other bits)" if found.rejected else "")
            rows.append((str(key), tried, config, f"{ours:.1f}", f"{rules:.1f}", f"{rules / ours:.2f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines = lines if self.found else []
        lines += [f"{len(self.kept)} more are in the table, and were not searched again"] if self.kept else []
        lines += [f"{key}: left out, the budget was spent" for key in self.left_out]
        lines += [f"{call}: left out, {why}" for call, why in self.failed]
        where = f"in {self.path}" if self.found or self.kept else "nothing was searched"
        return "\n".join([f"Tuned for {self.device}, {where}", *lines])


def changes(found: Found) -> str:
    """What a config has otherwise than the rule's."""
    return ", ".join(f"{name}={value}" for name, value in found.config.items() if value != found.rule[name])


def tune(
    model: nn.Module,
    x: Tensor,
    *,
    budget: float | None = None,
    training: bool = True,
    path: str | Path | None = None,
    again: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Tuned:
    """Search the fastest config for every kernel that ``model`` starts on an input like ``x``, and keep them.

    No config changes a result: what a search may try leaves every sum as it is, and a config that gives other bits than
    the rule's, on this GPU, is not taken. Later launches in this process, and in others on this device, use the user's
    own table.

    Args:
        model: a network with attention blocks, or a block, on the GPU to tune for. It is not changed.
        x: an input of the shape, strides and dtype to tune for, on the GPU to tune for. Its values are not read.
        budget: seconds after which no further search begins; None searches all.
        training: also tune the backward.
        path: the table to write; by default the user's own for this device, which later launches go by. Entries that
            are there stay, and if they were made with these versions are not searched again.
        again: search these, too.
        progress: called with a line of text as each search ends, as ``print`` may be.

    Returns:
        What was found, and the file it was written to.

    Raises:
        BackendError: Triton does not serve ``x``, so that there is nothing to tune.
        ValueError: ``model`` has no attention blocks, ``budget`` is not positive, or ``path`` is a file of another kind
            or a table for another device (the file is named, and left as it is).
        OSError: the table cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor on a GPU, got {type(x).__name__}")
    return tune_calls(calls(model, x), x, budget=budget, training=training, path=path, again=again, progress=progress)


def calls(model: nn.Module, x: Tensor) -> list[Call]:
    """The distinct calls of attention blocks that ``model`` makes on ``x``; nothing is computed.

    Raises:
        ValueError: there are none.
    """
    from torch._subclasses import FakeTensorMode

    found: dict[object, Call] = {}

    def note(block: AttentionBlock, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        given = inspect.signature(block.forward).bind(*arguments, **named).arguments
        call = Call(block, {name: _shape_of(t) for name, t in given.items() if isinstance(t, Tensor)})
        found.setdefault(call.signature, call)

    blocks = [block for _, block in outermost_blocks(model)]
    if not blocks:
        raise ValueError(f"model has no attention blocks to tune: {type(model).__name__}")
    training = {each: each.training for each in model.modules()}
    with contextlib.ExitStack() as stack, torch.no_grad(), backend.use_backend("reference"):
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model.eval()
        try:
            model(fake.from_tensor(x))
        finally:
            for each, mode in training.items():
                each.training = mode
    return list(found.values())


def _shape_of(t: Tensor) -> Tensor:
    """A tensor on the meta device like this fake one."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def tune_calls(
    found: Iterable[Call],
    like: Tensor,
    *,
    budget: float | None = None,
    training: bool = True,
    path: str | Path | None = None,
    again: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Tuned:
    """:func:`tune` for calls that are known, on the device of ``like``."""
    if budget is not None and (isinstance(budget, (bool, str)) or not budget > 0):
        raise ValueError(f"budget must be a positive number of seconds, got {budget!r}")
    with backend.use_backend("triton"):
        backend.use_triton(like)  # or the reason why not
    device, say = like.device, progress or (lambda _: None)
    table = selection.new_table(device)
    file = tables.user_path(table.device) if path is None else Path(path)
    table = _there_already(file, table, own=path is None, progress=say)
    known = set() if again or table.versions != _versions() else set(table.entries)
    tables.check_writable(file)
    end = math.inf if budget is None else time.monotonic() + budget
    tuned = Tuned(file, table.device)
    searcher = _Searcher(tuned, table, end, say, known)
    for call in found:
        # Rules only: of two tunings the second must not compare with what the first has found.
        with launch.watch(searcher), selection.use_entries({}), backend.use_backend("triton"):
            try:
                _step(call, device, training)
            except torch.OutOfMemoryError as error:
                tuned.failed.append((str(call), str(error).partition(". ")[0]))
    selection.forget()
    return tuned


def _step(call: Call, device: torch.device, training: bool) -> None:
    """Make a call, forward and in training backward, on random numbers."""
    with torch.inference_mode(False), torch.set_grad_enabled(training):
        block = copy.deepcopy(call.block).to(device).requires_grad_(training)
        inputs = {name: _filled(t, device).requires_grad_(training) for name, t in call.inputs.items()}
        y = block(**inputs)
        if training:
            y.backward(torch.randn_like(y))


def _versions() -> dict[str, str]:
    """What a table's times hang on."""
    from .info import versions

    return {name: versions()[name] for name in ("triton_attn", "Python", "torch", "triton")}


def _there_already(file: Path, empty: Table, own: bool, progress: Callable[[str], None]) -> Table:
    """The table in the file; of the user's own one, one that is broken is made anew."""
    try:
        return replace(tables.read(file, device=empty.device), architecture=empty.architecture)
    except NoTableError:
        return empty
    except TableError as error:
        if not own:
            raise ValueError(f"path: {error}; it is left as it is") from error
        progress(f"a table of tuned configs is made anew: {error}")
        return empty


def _filled(t: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).normal_()


@dataclass
class _Searcher:
    """Looks at launches, searches those of new keys while there is time, and keeps the table up to date."""

    tuned: Tuned
    table: Table
    end: float
    progress: Callable[[str], None]
    known: set[Key]

    def __call__(self, given: Launch) -> None:
        tuned, key = self.tuned, Key.of(given.kernel.fn.__name__, given.shape)
        space = spaces.space_of(given.kernel)
        seen = key in (*tuned.found, *tuned.left_out, *tuned.kept)
        if seen or 0 in given.grid(given.rule) or len(spaces.configs(space, given.rule)) == 1:
            return
        if key in self.known or time.monotonic() > self.end:
            (tuned.kept if key in self.known else tuned.left_out).append(key)
            return
        found = tuned.found[key] = search(given)
        chosen = {name: found.config[name] for name in spaces.parameters(space)}
        self.table.date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.table.versions = _versions()
        # Each time: an interrupted tuning keeps what it found.
        entry = Entry(chosen, found.seconds, found.rule_seconds, len(found.timings))
        tables.add(tuned.path, self.table, {key: entry})
        gain = f"{found.rule_seconds / found.seconds:.2f} times as fast, {changes(found)}"
        what = "the rule's config stays" if found.config == found.rule else gain
        self.progress(f"[{len(tuned.found)}] {key}: {len(found.timings)} configs, {what}")
