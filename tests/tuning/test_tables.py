"""Tables of tuned configs: whole, checked when they are read, and never in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triton_attn.files import MARK
from triton_attn.tuning import tables
from triton_attn.tuning.keys import Key
from triton_attn.tuning.tables import Entry, Table, TableError

KEY = Key("apply_gate_fwd_kernel", "bfloat16", "channels_last", (256,), 4096)
THIRD = Key("apply_gate_fwd_kernel", "bfloat16", "channels_last", (256,), 1024)
OTHER = Key("non_local_fwd_kernel", "float16", "contiguous", (128, 256), 4096)
TABLE = Table(
    device="NVIDIA H200",
    architecture="sm_90",
    date="2026-11-24T00:00:00+00:00",
    versions={"torch": "2.11"},
    entries={
        OTHER: Entry({"BLOCK_M": 64, "num_warps": 4, "num_stages": 3}, 2e-3, 3e-3, 8),
        KEY: Entry({"BLOCK_P": 32, "SPAN": 256}, 1e-4, 1.5e-4, 9),
    },
)


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "table.json"
    tables.write(path, TABLE)
    assert tables.read(path) == TABLE
    assert tables.read(path, device="NVIDIA H200", architecture="sm_90") == TABLE
    text = path.read_text()
    assert [line for line in text.splitlines() if "kernel" in line] == sorted(
        line for line in text.splitlines() if "kernel" in line
    )
    tables.write(path, tables.read(path))
    assert path.read_text() == text
    assert [each.name for each in path.parent.iterdir()] == ["table.json"]


def test_an_empty_table(tmp_path: Path) -> None:
    tables.write(tmp_path / "t.json", Table("x", "sm_80"))
    assert tables.read(tmp_path / "t.json").entries == {}


def spoiled(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def spoil(text: str) -> str:
        found = json.loads(text)
        change(found)
        return json.dumps(found)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2], "expected JSON"),
        (lambda _: "", "expected JSON"),
        (lambda _: "\x00\x01", "expected JSON"),
        (lambda _: "[]", "expected a table"),
        (lambda _: "{}", "no 'format'"),
        (spoiled(lambda t: t.update(format=2)), "its format is 2, not 1"),
        (spoiled(lambda t: t.pop("entries")), "no 'entries'"),
        (spoiled(lambda t: t.update(device=3)), "device is 3, not a text"),
        (spoiled(lambda t: t["entries"][0].update(kernel="rm_rf_kernel")), "'rm_rf_kernel' is no kernel with configs"),
        (spoiled(lambda t: t["entries"][0].update(kernel="spatial_pool_kernel")), "is no kernel with configs"),
        (spoiled(lambda t: t["entries"][0].update(layout="diagonal")), "the layout 'diagonal'"),
        (spoiled(lambda t: t["entries"][0].update(positions=-4)), "positions is -4, not a positive integer"),
        (spoiled(lambda t: t["entries"][0].update(channels=[True])), "channels is True, not a positive integer"),
        (spoiled(lambda t: t["entries"][0]["config"].update(BLOCK_P="32")), "BLOCK_P is '32'"),
        (spoiled(lambda t: t["entries"][0]["config"].update(BLOCK_C=64)), r"not of \['BLOCK_P', 'SPAN'\]"),
        (spoiled(lambda t: t["entries"][0]["config"].pop("SPAN")), r"not of \['BLOCK_P', 'SPAN'\]"),
        (spoiled(lambda t: t["entries"][0].update(seconds="fast")), "could not convert"),
        (spoiled(lambda t: t["entries"][0].update(seconds=10**400)), "int too large to convert to float"),
        (lambda _: "[" * 100_000, "expected JSON, got something else .*recursion"),
    ],
)
def test_a_broken_table_is_an_error_that_names_it(spoil: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tables.write(path, TABLE)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(TableError, match=message) as caught:
        tables.read(path)
    assert str(path) in str(caught.value)


def test_a_foreign_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tables.write(path, TABLE)
    with pytest.raises(TableError, match=r"is for the device 'NVIDIA H200', this one is 'NVIDIA A100'"):
        tables.read(path, device="NVIDIA A100")
    with pytest.raises(TableError, match=r"is for the architecture 'sm_90', this one is 'sm_80'"):
        tables.read(path, architecture="sm_80")


def test_two_tunings_side_by_side_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "table.json"
    old, new = Entry({"BLOCK_P": 32, "SPAN": 256}, 2e-4, 3e-4, 9), Entry({"BLOCK_P": 64, "SPAN": 256}, 1e-4, 3e-4, 9)
    first, second = Table("x", "sm_90", "monday"), Table("x", "sm_90", "tuesday", entries={KEY: old})
    tables.add(path, first, {OTHER: TABLE.entries[OTHER]})
    tables.add(path, second, {THIRD: old})
    assert tables.read(path).entries == {OTHER: TABLE.entries[OTHER], KEY: old, THIRD: old}
    tables.add(path, first, {KEY: new})  # the new one wins,
    assert tables.read(path).entries == first.entries
    assert tables.read(path).date == "monday"
    tables.add(path, second, {})  # and is not undone by what was read before
    assert tables.read(path).entries == {OTHER: TABLE.entries[OTHER], KEY: new, THIRD: old}


def test_a_broken_table_is_added_to_by_making_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("{")
    tables.add(path, Table("x", "sm_90"), TABLE.entries)
    assert tables.read(path) == Table("x", "sm_90", entries=TABLE.entries)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.json: cannot be read \(No such file"):
        tables.read(tmp_path / "none.json")


def test_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(tables.VARIABLE, raising=False)
    with pytest.raises(TableError, match=r"no home folder .*: set TRITON_ATTN_CACHE"):
        tables.user_path("NVIDIA H200")


def test_where_tables_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv(tables.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    name = "nvidia-h100-80gb-hbm3.json"
    assert tables.user_path("NVIDIA H100 80GB HBM3") == tmp_path / ".cache" / "triton_attn" / name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tables.user_path("NVIDIA H100 80GB HBM3") == tmp_path / "xdg" / "triton_attn" / name
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path / "own"))
    assert tables.user_path("NVIDIA H100 80GB HBM3") == tmp_path / "own" / name
    assert tables.shipped_path("sm_90").parts[-3:] == ("tuning", "shipped", "sm_90.json")


def test_the_shipped_tables_can_be_read() -> None:
    for path in tables.SHIPPED.glob("*.json"):
        assert tables.read(path, architecture=path.stem).entries


def test_a_pipe_or_a_file_without_end_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**40)
    for name in ("pipe.json", "large.json"):
        with pytest.raises(TableError, match=rf"{name}: cannot be read"):
            tables.read(tmp_path / name)


def test_what_killed_writers_left_is_cleared_before_a_search(tmp_path: Path) -> None:
    (tmp_path / f"{MARK}0123.json").write_text("{")
    tables.check_writable(tmp_path / "table.json")
    assert list(tmp_path.iterdir()) == []
