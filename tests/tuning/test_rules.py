"""The rules hold what the kernels rely on, at any shape."""

from __future__ import annotations

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
    assert rules.SPLIT % config["BLOCK_P"] == 0
    assert config["BLOCK_C" if channels_last else "BLOCK_P"] >= 8
    assert config["BLOCK_C"] * config["BLOCK_P"] <= rules.TILE
    assert config["BLOCK_C"] == rules.channel_block(channels, positions, channels_last)


@given(channels=sizes, positions=sizes, channels_last=st.booleans())
def test_apply_gate(channels: int, positions: int, channels_last: bool) -> None:
    config = rules.apply_gate(channels, positions, channels_last)
    assert all(is_power_of_two(value) for value in config.values())
    assert config["SPAN"] % config["BLOCK_P"] == 0
    assert config["BLOCK_C" if channels_last else "BLOCK_P"] >= 8
    assert config["BLOCK_C"] * config["BLOCK_P"] <= rules.TILE
    assert config["num_warps"] <= 16


@given(channels=sizes, hidden=sizes, parts=sizes)
def test_bottleneck(channels: int, hidden: int, parts: int) -> None:
    for config in (rules.bottleneck_hidden(channels, hidden, parts), rules.bottleneck_weights(channels, hidden, parts)):
        assert all(is_power_of_two(value) for value in config.values())
        assert config["BLOCK_N"] * config["BLOCK_C"] * config["BLOCK_M"] <= rules.TILE
        assert config["BLOCK_N"] * config["BLOCK_C"] * config["BLOCK_S"] <= rules.TILE
    assert is_power_of_two(rules.layer_block(hidden, 64))
    assert rules.layer_block(hidden, 64) * 64 <= rules.TILE
    assert rules.parts_block(parts) <= 16


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
