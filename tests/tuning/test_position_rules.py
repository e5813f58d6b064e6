"""The rules of the position gates hold what their kernels rely on, at any shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.test_rules import is_power_of_two, sizes
from triton_attn.tuning import chips, position_rules


@given(channels=st.integers(1, 300), hidden=st.integers(1, 300), itemsize=st.sampled_from([2, 4]), row=sizes)
def test_position_gate(channels: int, hidden: int, itemsize: int, row: int) -> None:
    for config in (
        rule(channels, hidden, itemsize, row, chips.CHIPS[target])
        for rule in (position_rules.position_gate_fwd, position_rules.position_gate_bwd)
        for target in ("sm_80", "gfx942")
    ):
        assert all(is_power_of_two(value) for value in config.values())
        assert config["BLOCK_C"] >= max(channels, 16)
        assert config["BLOCK_P"] >= 16
        assert config["BLOCK_M"] >= 16
        assert config.get("CHUNKS", 1) * config["BLOCK_M"] >= hidden
    # What the blocks ask for at the widths that one kernel serves.
    assert position_rules.position_gate_is_fused(256, 128, 1, 2, 3136)
    assert position_rules.position_gate_is_fused(256, 16, 256, 2, 3136)
    assert position_rules.position_gate_is_fused(64, 32, 1, 4, 3136)
    assert position_rules.position_gate_is_fused(64, 4, 64, 4, 3136)
    assert position_rules.position_gate_is_fused(128, 64, 1, 2, 3136, has_signal=True)
    assert not position_rules.position_gate_is_fused(257, 128, 1, 2, 3136)
    assert not position_rules.position_gate_is_fused(256, 128, 1, 2, 3136, has_signal=True)
    assert not position_rules.position_gate_is_fused(200, 12, 200, 2, 200)
    assert not position_rules.position_gate_is_fused(256, 16, 256, 2, 49)
    assert not position_rules.position_gate_is_fused(65, 32, 1, 4, 3136)


@given(elements=st.integers(0, 2**40), tiles=st.integers(0, 2**30), parameters=st.integers(1, 40000))
def test_position_gate_runs(elements: int, tiles: int, parameters: int) -> None:
    programs, run = position_rules.position_gate_runs(elements, tiles, parameters)
    assert 0 <= programs <= 1024
    assert run >= 1
    assert (programs - 1) * run < max(tiles, 1)
    assert programs * run >= tiles


@given(channels=sizes, positions=sizes, channels_last=st.booleans(), per_channel=st.booleans())
def test_map_gate(channels: int, positions: int, channels_last: bool, per_channel: bool) -> None:
    outer, inner = (positions, channels) if channels_last else (channels, positions)
    forward = position_rules.map_gate_fwd(outer, inner, channels_last, per_channel)
    backward = position_rules.map_gate_bwd(channels, positions, channels_last, per_channel)
    assert all(is_power_of_two(value) for value in (*forward.values(), *backward.values()))
    # Bits are packed by eight along the contiguous axis.
    assert forward["BLOCK_INNER"] >= 8
    assert backward["BLOCK_C" if channels_last else "BLOCK_P"] >= 8
