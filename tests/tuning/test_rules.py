"""The rules hold what the kernels rely on, at any shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_attn.tuning import rules

sizes = st.integers(1, 20000)


def is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@given(channels=sizes, positions=sizes, channels_last=st.booleans())
def test_squeeze(channels: int, positions: int, channels_last: bool) -> None:
    config = rules.squeeze(channels, positions, channels_last)
    assert all(is_power_of_two(value) for value in config.values())
    # A split is a whole number of blocks, and bits are packed by eight along the contiguous axis.
    assert rules.split(channels, positions, channels_last) % config["BLOCK_P"] == 0
    assert config["BLOCK_C" if channels_last else "BLOCK_P"] >= 8
    assert config["BLOCK_C"] * config["BLOCK_P"] <= rules.TILE


@given(channels=sizes, positions=sizes, channels_last=st.booleans())
def test_apply_gate(channels: int, positions: int, channels_last: bool) -> None:
    config = rules.apply_gate(channels, positions, channels_last)
    assert all(is_power_of_two(value) for value in config.values())
    assert config["SPAN"] % config["BLOCK_P"] == 0
    assert config["BLOCK_C" if channels_last else "BLOCK_P"] >= 8
    assert config["BLOCK_C"] * config["BLOCK_P"] <= rules.TILE
    assert config["num_warps"] <= 16


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("channels", "width"), [(64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)])
def test_a_batch_of_16_fills_a_chip(channels: int, width: int, channels_last: bool) -> None:
    """Two programs for each of 132 multiprocessors, at every site of ResNet-50."""
    squeeze, apply = (rule(channels, width**2, channels_last) for rule in (rules.squeeze, rules.apply_gate))
    splits = rules.splits(channels, width**2, channels_last)
    assert 16 * rules.cdiv(channels, squeeze["BLOCK_C"]) * splits >= 264
    assert 16 * rules.cdiv(channels, apply["BLOCK_C"]) * rules.cdiv(width**2, apply["SPAN"]) >= 264


@given(channels=sizes, hidden=sizes, parts=sizes, itemsize=st.sampled_from([2, 4]), peaks=st.booleans())
def test_dense(channels: int, hidden: int, parts: int, itemsize: int, peaks: bool) -> None:
    for config in (
        rules.dense_hidden(channels, hidden, parts, itemsize, 4, peaks),
        rules.dense_gate(channels, hidden, itemsize),
        rules.dense_whole(channels, min(hidden, 64), parts, itemsize, 1, peaks),
        rules.dense_bwd(channels, hidden, parts, itemsize),
    ):
        assert all(is_power_of_two(value) for value in config.values())
        # Tensor cores multiply nothing smaller, and every piece of a sum is a product.
        blocks = [value for name, value in config.items() if name.isupper() and name not in ("BLOCK_S", "PIECES")]
        assert min(blocks) >= 16
        assert config["BLOCK_C"] // config.get("PIECES", 1) >= 16
        # A thread has 128 elements of a tile's parts at most, once, and a program 256 threads.
        if "PIECES" in config:
            assert config["BLOCK_N"] * config["BLOCK_C"] * config["BLOCK_S"] <= 128 * 32 * config["num_warps"]
        assert config["num_warps"] <= 8


@given(channels=sizes, kernel_size=st.integers(1, 99), parts=sizes)
def test_neighbours(channels: int, kernel_size: int, parts: int) -> None:
    config = rules.neighbours(channels, kernel_size, parts)
    assert all(is_power_of_two(value) for value in config.values())
    assert config["BLOCK_C"] * config["BLOCK_K"] * config["BLOCK_S"] <= rules.TILE


@given(channels=sizes, parts=sizes)
def test_whole(channels: int, parts: int) -> None:
    config = rules.whole(channels, parts)
    assert all(is_power_of_two(value) for value in config.values())
    assert config["BLOCK_C"] * config["BLOCK_S"] <= rules.TILE


@given(size=sizes)
def test_partial_sums(size: int) -> None:
    config = rules.partial_sums(size)
    assert all(is_power_of_two(value) for value in config.values())
    assert config["BLOCK_P"] * config["BLOCK_K"] <= rules.TILE


@given(itemsize=st.sampled_from([2, 4]), batch_stride=sizes, row=sizes)
def test_unit(itemsize: int, batch_stride: int, row: int) -> None:
    unit = rules.unit(itemsize, batch_stride, row)
    assert 16 % unit == batch_stride % unit == row % unit == 0
    assert unit == 1 or batch_stride * itemsize % 16 == 0


def test_units_of_common_maps() -> None:
    assert rules.unit(2, 1024 * 196, 196) == 4
    assert rules.unit(2, 40 * 784, 40, 40) == 8
    assert rules.unit(2, 3 * 49, 49) == 1


def test_powers_of_two() -> None:
    assert [rules.power_of_two(size) for size in (0, 1, 2, 3, 4, 5, 1024, 1025)] == [1, 1, 2, 4, 4, 8, 1024, 2048]
    assert rules.cdiv(7, 4) == 2
    assert rules.cdiv(8, 4) == 2
