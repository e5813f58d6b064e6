"""The rules hold what the kernels rely on, at any shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from triton_attn.tuning import rules

sizes = st.integers(1, 20000)


def is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@given(channels=sizes, positions=sizes, channels_last=st.booleans())
def test_channel_sum(channels: int, positions: int, channels_last: bool) -> None:
    config = rules.channel_sum(channels, positions, channels_last)
    assert all(is_power_of_two(value) for value in config.values())
    # A split is a whole number of blocks, and bits are packed by eight along the contiguous axis.
    assert rules.SPLIT % config["BLOCK_P"] == 0
    assert config["BLOCK_C" if channels_last else "BLOCK_P"] >= 8
    assert config["BLOCK_C"] * config["BLOCK_P"] <= rules.TILE


@given(outer=sizes, inner=sizes, channels_last=st.booleans())
def test_apply_gate(outer: int, inner: int, channels_last: bool) -> None:
    config = rules.apply_gate(outer, inner, channels_last)
    assert all(is_power_of_two(value) for value in config.values())
    assert config["BLOCK_INNER"] >= 8
    assert config["BLOCK_OUTER"] * config["BLOCK_INNER"] <= 4 * rules.TILE
    assert config["num_warps"] <= 16


@given(summed=sizes, kept=sizes)
def test_dense(summed: int, kept: int) -> None:
    *blocks, num_warps = rules.dense(summed, kept)
    assert all(is_power_of_two(value) for value in (*blocks, num_warps))
    assert blocks[0] * blocks[1] * blocks[2] <= rules.TILE


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


@given(channels=st.integers(1, 300), hidden=st.integers(1, 300), itemsize=st.sampled_from([2, 4]), row=sizes)
def test_position_gate(channels: int, hidden: int, itemsize: int, row: int) -> None:
    for config in (
        rules.position_gate_fwd(channels, hidden, itemsize, row),
        rules.position_gate_bwd(channels, hidden, itemsize, row),
    ):
        assert all(is_power_of_two(value) for value in config.values())
        assert config["BLOCK_C"] >= max(channels, 16)
        assert config["BLOCK_P"] >= 16
        assert config["BLOCK_M"] >= 16
        assert config.get("CHUNKS", 1) * config["BLOCK_M"] >= hidden
    # What the blocks ask for at the widths that one kernel serves.
    assert rules.position_gate_is_fused(256, 128, 1, 2, 3136)
    assert rules.position_gate_is_fused(256, 16, 256, 2, 3136)
    assert rules.position_gate_is_fused(64, 32, 1, 4, 3136)
    assert rules.position_gate_is_fused(64, 4, 64, 4, 3136)
    assert not rules.position_gate_is_fused(257, 128, 1, 2, 3136)
    assert not rules.position_gate_is_fused(256, 16, 256, 2, 49)
    assert not rules.position_gate_is_fused(65, 32, 1, 4, 3136)


@given(elements=st.integers(0, 2**40), tiles=st.integers(0, 2**30), parameters=st.integers(1, 40000))
def test_position_gate_runs(elements: int, tiles: int, parameters: int) -> None:
    programs, run = rules.position_gate_runs(elements, tiles, parameters)
    assert 0 <= programs <= 1024
    assert run >= 1
    assert (programs - 1) * run < max(tiles, 1)
    assert programs * run >= tiles


@given(channels=sizes, positions=sizes, channels_last=st.booleans(), per_channel=st.booleans())
def test_map_gate(channels: int, positions: int, channels_last: bool, per_channel: bool) -> None:
    outer, inner = (positions, channels) if channels_last else (channels, positions)
    forward = rules.map_gate_fwd(outer, inner, channels_last, per_channel)
    backward = rules.map_gate_bwd(channels, positions, channels_last, per_channel)
    assert all(is_power_of_two(value) for value in (*forward.values(), *backward.values()))
    # Bits are packed by eight along the contiguous axis.
    assert forward["BLOCK_INNER"] >= 8
    assert backward["BLOCK_C" if channels_last else "BLOCK_P"] >= 8
