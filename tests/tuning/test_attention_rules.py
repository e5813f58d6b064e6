"""Every pair of widths has tiles on every chip, within what the chip has."""

from __future__ import annotations

import itertools

import pytest

from triton_attn.tuning import attention_rules as rules
from triton_attn.tuning import chips

SIZES = [1, 8, 31, 32, 48, 64, 96, 128, 200, 256, 512, 600, 1024, 2048]


def power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


# Those of the compile lane, and what consumer cards and Turing have.
CHIPS = {**chips.CHIPS, "sm_89": chips.Chip(99 * 1024), "sm_75": chips.Chip(64 * 1024)}


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_there_is_a_tile_for_every_problem(chip: chips.Chip, itemsize: int) -> None:
    for d, dv, channels_last in itertools.product(SIZES, SIZES, (False, True)):
        configs = [
            rules.forward(d, dv, itemsize, chip, channels_last),
            rules.queries_bwd(d, dv, itemsize, chip, channels_last),
            *(rules.keys_bwd(d, dv, itemsize, chip, channels_last, *needs) for needs in ((True, False), (False, True))),
        ]
        if rules.together(d, dv, itemsize, chip):
            configs.append(rules.keys_bwd(d, dv, itemsize, chip, channels_last, True, True))
        for config in configs:
            blocks = [value for name, value in config.items() if name.startswith(("BLOCK", "SLICE"))]
            assert all(power_of_two(block) and block >= 16 for block in blocks)
            # Narrower ones of float32 give wrong gradients on Hopper.
            assert min(config["BLOCK_D"], config["BLOCK_V"]) >= (32 if itemsize == 4 else 16)
            assert max(config["BLOCK_M"], config["BLOCK_N"]) >= 64
            if config["WHOLE_D"]:
                assert config["BLOCK_D"] >= d
            if config.get("WHOLE_V"):
                assert config["BLOCK_V"] >= dv


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_in_float32_a_backward_has_one_tile(chip: chips.Chip) -> None:
    """Its kernels must round the scores alike, and so walk their channels alike."""
    for d, dv, channels_last in itertools.product(SIZES, SIZES, (False, True)):
        shape = (d, dv, 4, chip, channels_last)
        configs = [
            rules.rows_bwd(*shape),
            rules.queries_bwd(*shape, True),
            *(rules.keys_bwd(*shape, *needs) for needs in ((True, False), (False, True))),
        ]
        for name in ("WHOLE_D", "WHOLE_V", "BLOCK_M", "BLOCK_N", "BLOCK_D", "BLOCK_V"):
            assert len({config[name] for config in configs}) == 1
        swapped = rules.queries_bwd(*shape)
        assert (swapped["WHOLE_D"], swapped["BLOCK_D"]) == (configs[0]["WHOLE_D"], configs[0]["BLOCK_D"])
        assert (swapped["WHOLE_V"], swapped["BLOCK_V"]) == (configs[0]["WHOLE_V"], configs[0]["BLOCK_V"])


def test_the_matrix_is_kept_where_that_moves_less() -> None:
    """Of ResNet-50's sites at 224², on the maps of 14 × 14 and 7 × 7."""
    sites = [(32, 64, 12544), (128, 256, 3136), (256, 512, 784), (512, 1024, 196), (1024, 2048, 49)]
    assert [rules.keeps_rows(d, dv, positions, positions) for d, dv, positions in sites] == [False] * 3 + [True] * 2
    assert [rules.by_library(d, dv, positions, positions, 2) for d, dv, positions in sites] == [False] * 2 + [
        True,
        False,
        False,
    ]
    assert not rules.by_library(256, 512, 784, 784, 4)
    assert not rules.by_library(1024, 2048, 10**6, 1024, 2)
    assert not rules.keeps_rows(1024, 2048, 10**6, 1024)
    assert not rules.keeps_rows(16, 32, 64, 64)


def test_a_chip_can_be_assumed() -> None:
    import torch

    device = torch.device("meta")
    assert chips.chip_of(device) == chips.CHIPS["sm_80"]
    with chips.assume(chips.CHIPS["gfx942"]):
        assert chips.chip_of(device).amd
        with chips.assume(chips.CHIPS["sm_90"]):
            assert chips.chip_of(device).shared == 227 * 1024
        assert chips.chip_of(device).amd
    assert chips.chip_of(device) == chips.CHIPS["sm_80"]
