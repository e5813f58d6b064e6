"""Tables of tuned configs: JSON files, read with every value checked, written whole or not at all.

The user's own lies under the platform's cache folder (``TRITON_ATTN_CACHE`` names another), one for each device:
``triton_attn/nvidia-h200.json``. Those that come with the library lie in ``shipped/`` beside this file, one for each
compute capability: ``sm_90.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import clear_leftovers, read_text, write_text
from . import spaces
from .keys import Key

FORMAT = 1
VARIABLE = "TRITON_ATTN_CACHE"
SHIPPED = Path(__file__).parent / "shipped"
LAYOUTS = ("contiguous", "channels_last")


class TableError(ValueError):
    """A file that is no table, or one for another device, which the message names; or no folder to look for one in."""


class NoTableError(TableError):
    """There is no such file."""


@dataclass(frozen=True)
class Entry:
    """The config that a search found, of the space's parameters alone, and what it and the rule's took, in seconds."""

    config: Mapping[str, int]
    seconds: float
    rule_seconds: float
    tried: int


@dataclass
class Table:
    """Entries for one device."""

    device: str
    architecture: str
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    entries: dict[Key, Entry] = field(default_factory=dict)


def slug(device: str) -> str:
    """A device's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def cache_folder() -> Path:
    """Where the platform keeps what can be made again.

    Raises:
        TableError: that is in the home folder, and there is none.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise TableError(f"there is no home folder to keep it in ({error}): set {VARIABLE} to a folder") from error
    return Path(base) / "triton_attn"


def user_path(device: str) -> Path:
    """The user's table for a device, by its name.

    Raises:
        TableError: there is no folder for it.
    """
    return cache_folder() / f"{slug(device)}.json"


def shipped_path(architecture: str) -> Path:
    """The library's own table for a compute capability: ``sm_90``, or AMD's name of it."""
    return SHIPPED / f"{architecture}.json"


def read(path: Path, *, device: str | None = None, architecture: str | None = None) -> Table:
    """Read a table, which must be for this device or architecture where one is given.

    Raises:
        NoTableError: the file is not there.
        TableError: it cannot be read, is broken, or is for something else.
    """
    try:
        found = json.loads(read_text(path))
    except OSError as error:
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        kind = NoTableError if absent else TableError
        raise kind(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: expected JSON, got something else ({error})") from error
    try:
        table = _table(found)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TableError(f"{path}: expected a table of tuned configs, but {what}") from error
    for name, wanted in (("device", device), ("architecture", architecture)):
        if wanted is not None and getattr(table, name) != wanted:
            raise TableError(f"{path}: is for the {name} {getattr(table, name)!r}, this one is {wanted!r}")
    return table


def _table(found: dict[str, Any]) -> Table:
    if found["format"] != FORMAT:
        raise ValueError(f"its format is {found['format']!r}, not {FORMAT}")
    versions = {str(name): str(version) for name, version in found["versions"].items()}
    table = Table(_text(found, "device"), _text(found, "architecture"), _text(found, "date"), versions)
    for each in found["entries"]:
        channels = tuple(_positive("channels", size) for size in each["channels"])
        positions = _positive("positions", each["positions"])
        key = Key(_text(each, "kernel"), _text(each, "dtype"), _text(each, "layout"), channels, positions)
        space = spaces.known_spaces().get(key.kernel)
        if not space:
            raise ValueError(f"{key.kernel!r} is no kernel with configs to choose from")
        if key.layout not in LAYOUTS:
            raise ValueError(f"the layout {key.layout!r} is none of {', '.join(LAYOUTS)}")
        config = {name: _positive(name, value) for name, value in each["config"].items()}
        if sorted(config) != sorted(spaces.parameters(space)):
            raise ValueError(f"the config of {key} is of {sorted(config)}, not of {sorted(spaces.parameters(space))}")
        seconds, rule_seconds = float(each["seconds"]), float(each["rule_seconds"])
        table.entries[key] = Entry(config, seconds, rule_seconds, _positive("tried", each["tried"]))
    return table


def _text(found: dict[str, Any], name: str) -> str:
    if not isinstance(found[name], str):
        raise TypeError(f"{name} is {found[name]!r}, not a text")
    return found[name]


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, not a positive integer")
    return value


def add(path: Path, table: Table, new: Mapping[Key, Entry]) -> None:
    """Put new entries into ``table`` and write it, with what others have written there since it was read.

    The new entries go before the file's, and these before the table's. A file that is no table for this device is
    written over: whoever minds has to look before.
    """
    with contextlib.suppress(TableError):
        table.entries |= read(path, device=table.device).entries
    table.entries |= new
    write(path, table)


def check_writable(path: Path) -> None:
    """Find out before a long search whether its table can be written; the folder is made.

    What killed processes left there is cleared away.

    Raises:
        OSError: it cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write(path: Path, table: Table) -> None:
    """Write a table, an entry a line."""
    head = {"format": FORMAT, **vars(table)}
    entries = sorted(head.pop("entries").items())
    lines = ",\n".join("  " + json.dumps(vars(key) | vars(entry)) for key, entry in entries)
    text = json.dumps(head, indent=1).removesuffix("\n}") + f',\n "entries": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
