"""The kernels of rows and columns as machine code: no spills, and whole words where the map's rows allow them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counted.machine_code import TARGETS, block_launches
from benchmarks.counted.ptx import compiled_quickly

pytestmark = pytest.mark.compile

KERNELS = ["strip_sums_kernel", "strip_apply_fwd_kernel", "strip_sums_kernel", "strip_apply_bwd_kernel"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=["contiguous", "channels_last"])
def test_no_spills_and_wide_words(target, dtype, memory_format):
    launches = block_launches("published.coordinate", (64, 256, 56, 56), dtype, memory_format, with_shortcut=True)
    assert [launch.name for launch in launches] == KERNELS
    # AMD's wavefronts are twice as wide: a thread has four elements of a contiguous tile.
    least = 8 if target == "gfx942" and dtype.itemsize == 2 else 16
    for launch in launches:
        report = compiled_quickly(launch, target)
        assert report.spilled == 0, launch.name
        assert report.widest_load >= least, launch.name
        if "apply" in launch.name:
            assert report.widest_store >= least, launch.name


@pytest.mark.parametrize("shape", [(2, 60, 7, 7), (3, 17, 33, 130)], ids=str)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=["contiguous", "channels_last"])
def test_odd_shapes(shape, memory_format):
    for with_shortcut in (False, True):
        for launch in block_launches("published.coordinate", shape, torch.bfloat16, memory_format, with_shortcut):
            assert compiled_quickly(launch, "sm_90").spilled == 0, launch.name
