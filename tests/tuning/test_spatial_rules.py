"""The rules hold what CBAM's kernels rely on, at any shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from triton_attn.tuning import spatial_rules

sizes = st.integers(1, 20000)


def is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@given(channels=sizes, positions=sizes, itemsize=st.sampled_from([2, 4]))
def test_spatial(channels: int, positions: int, itemsize: int) -> None:
    config = spatial_rules.spatial(channels, positions, itemsize)
    assert all(is_power_of_two(value) for value in config.values())
    assert config["BLOCK_P"] == spatial_rules.block_p(positions)
    assert config["CHUNK"] % config["BLOCK_C"] == 0
    # Bits are packed by eight along the contiguous axis, whichever it is.
    assert min(config["BLOCK_C"], config["BLOCK_P"]) >= 8
    assert config["BLOCK_C"] * config["BLOCK_P"] <= 16 * 32 * config["num_warps"]
    assert config["BLOCK_C"] * itemsize <= 64


@given(channels=sizes, positions=sizes)
def test_a_batch_of_16_fills_a_chip(channels: int, positions: int) -> None:
    """Two programs for each of 132 multiprocessors, wherever a map of 16 bits has that many pieces of 8 KB."""
    config = spatial_rules.spatial(channels, positions, 2)
    programs = 16 * -(-positions // config["BLOCK_P"]) * -(-channels // config["CHUNK"])
    assert 16 * channels * positions * 2 // 8192 < 264 or programs >= 264


@given(height=sizes, width=sizes, chunks=sizes)
def test_conv(height: int, width: int, chunks: int) -> None:
    config = spatial_rules.conv(height * width, width, chunks)
    assert all(is_power_of_two(value) for value in config.values())
    threads = 32 * config["num_warps"]
    assert config["GROUP"] * config["SPAN"] <= 16 * threads
    # The strip has whatever the last position's last tap looks at.
    block = config["BLOCK_P"]
    assert 6 * min(width, block + 6) + block - 1 + 6 < config["SPAN"]
