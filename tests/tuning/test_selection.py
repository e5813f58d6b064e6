"""Which config a launch takes: the user's table, the library's, the rule."""

from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from triton_attn.tuning import selection, tables
from triton_attn.tuning.keys import Key, Shape
from triton_attn.tuning.tables import Entry, Table

GPU = torch.device("cuda", 0)
SHAPE = Shape(torch.bfloat16, True, (256,), 3136)
RULE = {"SPAN": 128, "BLOCK_C": 64, "BLOCK_P": 32, "num_warps": 4}


@pytest.fixture
def kernel() -> Any:
    from triton_attn.kernels.apply_gate import apply_gate_fwd_kernel

    return apply_gate_fwd_kernel


KEY = Key("apply_gate_fwd_kernel", "bfloat16", "channels_last", (256,), 4096)


def entry(span: int, block_p: int = 32) -> Entry:
    return Entry({"BLOCK_P": block_p, "SPAN": span}, 1e-4, 2e-4, 9)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU of this name, with nothing tuned for it yet; the folder has the user's tables and ``shipped``."""
    properties = types.SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path))
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "shipped")
    selection.forget()
    yield tmp_path
    selection.forget()


def put(path: Path, *entries: Entry, device: str = "NVIDIA H200") -> None:
    tables.write(path, Table(device, "sm_90", entries=dict(zip([KEY], entries, strict=True))))
    selection.forget()


@pytest.mark.usefixtures("gpu")
def test_without_tables_it_is_the_rule(kernel: Any) -> None:
    assert selection.choose(kernel, SHAPE, RULE, GPU) is RULE
    assert selection.choose(kernel, SHAPE, RULE, torch.device("cpu")) is RULE


def test_the_users_table_before_the_shipped_one_before_the_rule(kernel: Any, gpu: Path) -> None:
    put(gpu / "shipped" / "sm_90.json", entry(256))
    assert selection.choose(kernel, SHAPE, RULE, GPU) == {**RULE, "SPAN": 256}
    put(gpu / "nvidia-h200.json", entry(512))
    assert selection.choose(kernel, SHAPE, RULE, GPU) == {**RULE, "SPAN": 512}
    assert selection.choose(kernel, SHAPE, RULE, GPU) is selection.choose(kernel, SHAPE, RULE, GPU)
    # The key holds what is about as large, and nothing else.
    assert selection.choose(kernel, SHAPE._replace(positions=2500), RULE, GPU)["SPAN"] == 512
    for other in (
        SHAPE._replace(positions=12544),
        SHAPE._replace(channels=(512,)),
        SHAPE._replace(dtype=torch.float16),
        SHAPE._replace(channels_last=False),
    ):
        assert selection.choose(kernel, other, RULE, GPU) is RULE
    (gpu / "nvidia-h200.json").unlink()
    selection.forget()
    assert selection.choose(kernel, SHAPE, RULE, GPU)["SPAN"] == 256


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "[" * 100_000], ids=["empty", "cut", "other", "deep"])
def test_a_broken_table_is_reported_once_and_ignored(text: str, kernel: Any, gpu: Path) -> None:
    put(gpu / "shipped" / "sm_90.json", entry(256))
    (gpu / "nvidia-h200.json").write_text(text)
    with pytest.warns(UserWarning, match=r"ignored: .*nvidia-h200\.json"):
        assert selection.choose(kernel, SHAPE, RULE, GPU)["SPAN"] == 256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selection.choose(kernel, SHAPE, RULE, GPU)["SPAN"] == 256


def test_another_devices_table_is_reported_and_ignored(kernel: Any, gpu: Path) -> None:
    put(gpu / "nvidia-h200.json", entry(512), device="NVIDIA A100")
    with pytest.warns(UserWarning, match=r"nvidia-h200\.json: is for the device 'NVIDIA A100'"):
        assert selection.choose(kernel, SHAPE, RULE, GPU) is RULE


def test_a_folder_that_cannot_be_looked_into_is_reported_once(
    kernel: Any, gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(gpu / "shipped" / "sm_90.json", entry(256))
    monkeypatch.setenv(tables.VARIABLE, str(gpu / ("x" * 300)))  # as one without permission, but for root too
    assert_reported_once(kernel, r"ignored: .*nvidia-h200\.json: cannot be read \(File name too long\)")


def assert_reported_once(kernel: Any, message: str) -> None:
    """And the shipped table is read all the same."""
    with pytest.warns(UserWarning, match=message):
        assert selection.choose(kernel, SHAPE, RULE, GPU)["SPAN"] == 256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selection.choose(kernel, SHAPE, RULE, GPU)["SPAN"] == 256


def test_without_a_home_folder_it_is_reported_once(kernel: Any, gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(gpu / "shipped" / "sm_90.json", entry(256))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as in a container whose user has no name
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(tables.VARIABLE)
    assert_reported_once(kernel, f"no home folder .*{tables.VARIABLE}")


def test_a_folder_that_is_a_file_has_no_tables(kernel: Any, gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu / "file").touch()
    monkeypatch.setenv(tables.VARIABLE, str(gpu / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selection.choose(kernel, SHAPE, RULE, GPU) is RULE


def test_an_entry_outside_of_the_space_gives_way_to_the_rule(kernel: Any, gpu: Path) -> None:
    put(gpu / "nvidia-h200.json", entry(128 << 10))
    assert selection.choose(kernel, SHAPE, RULE, GPU) is RULE
    # A shape of the same key whose rule wants smaller tiles: within reach of one, out of reach of the other.
    put(gpu / "nvidia-h200.json", entry(256, 64))
    assert selection.choose(kernel, SHAPE, RULE, GPU)["BLOCK_P"] == 64
    ragged = {**RULE, "BLOCK_P": 16}
    assert selection.choose(kernel, SHAPE, ragged, GPU) is ragged


def test_entries_may_be_forced(kernel: Any) -> None:
    cpu = torch.device("cpu")
    with selection.use_entries({KEY: entry(256)}):
        assert selection.choose(kernel, SHAPE, RULE, cpu)["SPAN"] == 256
        with selection.use_entries({}):
            assert selection.choose(kernel, SHAPE, RULE, cpu) is RULE
        assert selection.choose(kernel, SHAPE, RULE, cpu)["SPAN"] == 256
    assert selection.choose(kernel, SHAPE, RULE, cpu) is RULE


def test_amds_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = types.SimpleNamespace(name="AMD Instinct MI300X", gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert selection.device_names(GPU) == ("AMD Instinct MI300X", "gfx942")
