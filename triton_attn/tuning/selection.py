"""Which config a launch takes: the user's tuned table, else the library's, else the rule by shape. Nothing searches."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..per_thread import PerThread
from . import spaces, tables
from .keys import Key, Shape
from .tables import Entry, NoTableError, Table, TableError

Entries = Mapping[Key, Entry]
_forced: PerThread[Entries] = PerThread()
on_change: list[Callable[[], None]] = []
"""Called when launches may choose otherwise than before."""


def choose(kernel: Any, shape: Shape, rule: spaces.Config, device: torch.device) -> spaces.Config:
    """The config for a launch of ``kernel``: a table's, where one has it and it lies in the space around ``rule``."""
    if (forced := _forced.value) is not None:
        return _from(forced, kernel, shape, rule) or rule
    return (_by_tables(device) and _chosen(kernel, shape, device, *rule.items())) or rule


@cache
def _chosen(kernel: Any, shape: Shape, device: torch.device, *rule: tuple[str, int]) -> spaces.Config | None:
    """By the device's tables: once for a launch of a kind, for those that are in no plan."""
    return _from(_by_tables(device), kernel, shape, dict(rule))


def _from(entries: Entries, kernel: Any, shape: Shape, rule: spaces.Config) -> spaces.Config | None:
    entry = entries.get(Key.of(kernel.fn.__name__, shape))
    if entry is None:
        return None
    config = {**rule, **entry.config}
    # Other shapes share the key, and their rule may be far from the one that was tuned: ragged rows want small tiles.
    return config if config in spaces.configs(spaces.space_of(kernel), rule) else None


def use_entries(entries: Entries) -> contextlib.AbstractContextManager[object]:
    """Within this, these entries stand for all tables, on every device; with none, launches go by their rules.

    That holds for this thread, and for the backwards that begin within, which run in it.
    """
    return _forced.set_and_backwards(entries)


def is_forced() -> bool:
    """Whether that is so here: what other threads' launches go by says nothing of this one's then."""
    return _forced.value is not None


def forget() -> None:
    """Read the tables again at the next launch."""
    _by_tables.cache_clear()
    _chosen.cache_clear()
    for each in on_change:
        each()


@cache
def _by_tables(device: torch.device) -> Entries:
    """The entries for a device, read once. Tensors on no GPU are the interpreter's, for which nothing is tuned."""
    if device.type != "cuda":
        return {}
    name, architecture = device_names(device)
    return {**_read(tables.shipped_path, architecture=architecture), **_read(tables.user_path, device=name)}


def _read(path_of: Callable[[str], Path], **wanted: str) -> Entries:
    """The entries of the table for this device or architecture; launches go on where there is none or a bad one."""
    try:
        return tables.read(path_of(*wanted.values()), **wanted).entries
    except NoTableError:
        return {}
    except TableError as error:
        warnings.warn(f"a table of tuned configs is ignored: {error}", stacklevel=2)
        return {}


def device_names(device: torch.device) -> tuple[str, str]:
    """A device's name, and its architecture as the compilers call it."""
    if device.type != "cuda":
        return "interpreter", "interpreter"
    properties: Any = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.name, properties.gcnArchName.partition(":")[0]
    return properties.name, f"sm_{properties.major}{properties.minor}"


def new_table(device: torch.device) -> Table:
    """An empty table for a device."""
    name, architecture = device_names(device)
    return Table(name, architecture)
