"""The launches of non-local attention at ResNet-50's sites, compiled for GPUs that are not there.

A covering part of sites × dtypes × layouts × targets: float16 differs from bfloat16 in the names of instructions, and
batch and shortcut in nothing that is multiplied. The compile report has them all, and names what may spill.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks.counted.machine_code import SHARED_LIMIT, Launch, block_launches, promised
from benchmarks.counted.ptx import binary_of, compiled_quickly
from triton_attn.tuning import chips

pytestmark = pytest.mark.compile

SITES = {
    "stem": (64, 112),
    "layer1": (256, 56),
    "layer2": (512, 28),
    "layer3": (1024, 14),
    "layer4": (2048, 7),
}
TILED = {"non_local_fwd_kernel", "non_local_keys_bwd_kernel", "non_local_queries_bwd_kernel"}
ROWS = "non_local_rows_bwd_kernel"  # in float32
PRODUCTS = TILED | {"non_local_whole_fwd_kernel", ROWS}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

# (target, dtype, layout, sites)
CASES = [
    ("sm_90", torch.bfloat16, "channels_last", tuple(SITES)),
    ("sm_90", torch.bfloat16, "contiguous", ("layer2", "layer4")),
    ("sm_90", torch.float32, "channels_last", ("layer1",)),
    ("sm_100", torch.bfloat16, "channels_last", ("stem", "layer1", "layer2", "layer4")),
    ("sm_80", torch.bfloat16, "channels_last", ("layer1", "layer3")),
    ("sm_80", torch.float32, "channels_last", ("stem",)),
    ("gfx942", torch.bfloat16, "channels_last", ("layer1", "layer4")),
    ("gfx942", torch.float32, "channels_last", ("layer2",)),
]


@cache
def launches(site: str, dtype: torch.dtype, layout: str, target: str) -> list[Launch]:
    """What a training step of the block starts at a site, with the tiles that it takes on a target."""
    channels, side = SITES[site]
    with chips.assume(chips.CHIPS[target]):
        return block_launches("nonlocal", (64, channels, side, side), dtype, LAYOUTS[layout], True)


@pytest.mark.parametrize(
    ("target", "dtype", "layout", "site"),
    [(target, dtype, layout, site) for target, dtype, layout, sites in CASES for site in sites],
    ids=str,
)
def test_site(target: str, dtype: torch.dtype, layout: str, site: str) -> None:
    """Within shared memory, without spills, and on Hopper with its own products, of whole warp groups."""
    found = launches(site, dtype, layout, target)
    whole = site in ("layer3", "layer4")
    names = {launch.name for launch in found}
    assert names == {"non_local_delta_kernel"} | (
        {"non_local_whole_fwd_kernel", "softmax_bwd_kernel"}
        if whole
        else {"softmax_fwd_kernel", "non_local_tail_kernel", "softmax_bwd_kernel"}
        if site == "layer2" and dtype.itemsize == 2
        else TILED | {ROWS}
        if dtype.itemsize == 4
        else TILED
    )
    for launch in found:
        if launch.name not in PRODUCTS and target != "sm_90":
            continue  # elementwise, and the same everywhere
        report = compiled_quickly(launch, target)
        what = f"{launch.name} {dict(launch.constants)}"
        assert report.shared <= SHARED_LIMIT[target], what
        assert report.spilled == 0 or not promised(), what
        # Contiguous rows of 49 and 196 are not aligned.
        if layout == "channels_last" or not whole:
            assert report.widest_load >= 16, what
        if launch.name in PRODUCTS:
            assert report.tensor_cores > 0, what
            if target == "sm_90" and dtype.itemsize == 2:
                ptx = binary_of(launch, target).asm["ptx"]
                assert "wgmma.mma_async" in ptx, what
                assert "mma.sync" not in ptx, what


@pytest.mark.parametrize(("name", "site"), [("published.nonlocal", "layer2"), ("published.position", "layer3")])
def test_as_published(name: str, site: str) -> None:
    """Fewer keys than queries, and queries and keys of an eighth of the channels: no spills on Hopper."""
    channels, side = SITES[site]
    shape = (64, channels, side, side)
    found = block_launches(name, shape, torch.bfloat16, torch.channels_last, True, target="sm_90")
    assert any(launch.name in PRODUCTS for launch in found)
    for launch in found:
        assert compiled_quickly(launch, "sm_90").spilled == 0 or not promised(), launch.name


@pytest.mark.parametrize("site", SITES)
def test_the_batch_changes_no_program(site: str) -> None:
    """The last, smaller batch of an epoch compiles nothing again, and sums in no other order."""
    channels, side = SITES[site]
    programs = {
        batch: set(block_launches("nonlocal", (batch, channels, side, side), torch.bfloat16, torch.channels_last, True))
        for batch in (64, 37, 1)
    }
    assert programs[64] == programs[37] == programs[1]


def test_inference_saves_nothing() -> None:
    for site, kernel in (("stem", "non_local_fwd_kernel"), ("layer4", "non_local_whole_fwd_kernel")):
        channels, side = SITES[site]
        (launch,) = block_launches(
            "nonlocal", (8, channels, side, side), torch.bfloat16, torch.channels_last, True, training=False
        )
        assert launch.name == kernel
        assert not dict(launch.constants)["SAVES"]


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_float32_products_follow_the_setting(setting: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        for target, exact in (("sm_80", "tf32x3"), ("gfx942", "ieee")):
            chip = chips.CHIPS[target]
            with chips.assume(chip):
                found = block_launches("nonlocal", (2, 64, 32, 32), torch.float32, torch.channels_last, False)
            precisions = {dict(launch.constants)["PRECISION"] for launch in found if launch.name in PRODUCTS}
            assert precisions == {exact if setting == "highest" else "tf32"}
            assert chips.precision(torch.bfloat16, chip) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
