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
    # Bits are packed by eight along the contiguous axis, whichever it is.
    assert min(config["BLOCK_C"], config["BLOCK_P"]) >= 8
    # Neither a tile nor the window of 64 columns around its positions takes more than 16 elements of a thread.
    assert config["BLOCK_P"] * 64 <= 16 * 32 * config["num_warps"]
    assert config["BLOCK_C"] * itemsize <= 128
    assert config["num_warps"] <= 16
