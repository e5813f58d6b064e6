"""The kernels of scSE, global context and SimAM as machine code: no spills, and whole words where rows allow them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counted.machine_code import TARGETS, block_launches
from benchmarks.counted.ptx import compiled_quickly

pytestmark = pytest.mark.compile

KERNELS = {
    "published.scse": {"weighed_sums_kernel", "sum_apply_fwd_kernel", "weighed_apply_bwd_kernel"},
    "published.global_context": {"weighed_sums_kernel", "weighed_apply_bwd_kernel"},
    "published.simam": {"moments_kernel", "simam_fwd_kernel", "simam_sums_kernel", "simam_bwd_kernel"},
}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


# Every target in bfloat16, whose words are float16's too, and the most registers, float32's, on one.
@pytest.mark.parametrize(
    ("dtype", "target"), [*((torch.bfloat16, target) for target in TARGETS), (torch.float32, "sm_90")], ids=str
)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("block", KERNELS)
def test_no_spills_and_wide_words(block, memory_format, dtype, target):
    launches = block_launches(block, (64, 256, 56, 56), dtype, memory_format, with_shortcut=True)
    found = {launch.name: launch for launch in launches if launch.name in KERNELS[block]}
    assert set(found) == KERNELS[block]
    # AMD's wavefronts are twice as wide: a thread has half as many elements of a tile.
    least = 8 if target == "gfx942" else 16
    for name, launch in found.items():
        report = compiled_quickly(launch, target)
        assert report.spilled == 0, name
        assert report.widest_load >= least, name
        if "apply" in name or name in ("simam_fwd_kernel", "simam_bwd_kernel"):
            assert report.widest_store >= least, name


@pytest.mark.parametrize("block", KERNELS)
def test_an_odd_shape(block):
    for launch in block_launches(block, (3, 17, 33, 130), torch.bfloat16, torch.channels_last, with_shortcut=False):
        assert compiled_quickly(launch, "sm_90").spilled == 0, launch.name
