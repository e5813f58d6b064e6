"""What a config is looked up by."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from triton_attn.tuning.keys import Key, Shape


def test_the_batch_is_no_part_of_it() -> None:
    one, many = (Shape.of(torch.empty(batch, 96, 14, 14, dtype=torch.bfloat16), True) for batch in (1, 64))
    assert Key.of("k", one) == Key.of("k", many) == Key("k", "bfloat16", "channels_last", (128,), 256)
    assert str(Key.of("k", one)) == "k, bfloat16, channels_last, up to 128 channels × 256 positions"


@given(st.integers(1, 4096), st.integers(1, 20000))
def test_sizes_fall_between_a_power_of_two_and_half_of_it(channels: int, positions: int) -> None:
    key = Key.of("k", Shape(torch.float32, False, (channels, 1), positions))
    for size, bucket in ((channels, key.channels[0]), (positions, key.positions)):
        assert bucket // 2 < size <= bucket
        assert bucket & (bucket - 1) == 0
    assert key.channels[1] == 1
    assert (key.dtype, key.layout) == ("float32", "contiguous")
