"""The kernels of rows and columns as machine code: no spills, and whole words where the map's rows allow them."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from benchmarks.counted.machine_code import TARGETS, block_launches, launches_of, serving_meta_tensors
from benchmarks.counted.ptx import compiled_quickly

pytestmark = pytest.mark.compile

KERNELS = ["strip_sums_kernel", "strip_apply_fwd_kernel", "strip_sums_kernel", "strip_apply_bwd_kernel"]
NORMED = ["normed_strips_kernel", "normed_strips_bwd_kernel"]
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


# The batch norm's kernels on vectors have their tests; sm_80 and sm_100 were dropped, as there.
@pytest.mark.parametrize(
    ("memory_format", "dtype", "target"),
    [
        (torch.channels_last, torch.bfloat16, "sm_90"),
        (torch.contiguous_format, torch.float32, "sm_90"),
        (torch.channels_last, torch.bfloat16, "gfx942"),
    ],
    ids=str,
)
def test_behind_a_batch_norm(memory_format, dtype, target):
    def make(*size):
        return torch.empty(size, dtype=dtype, device="meta").contiguous(memory_format=memory_format).requires_grad_()

    x, shortcut, grad = (make(64, 256, 28, 28) for _ in range(3))
    with torch.device("meta"):
        block, norm = (
            triton_attn.published.CoordinateAttention(256, dtype=dtype),
            torch.nn.BatchNorm2d(256, dtype=dtype),
        )

    def step():
        torch.autograd.grad(block.behind(norm, x, shortcut), [x, shortcut, *norm.parameters()], grad)

    with serving_meta_tensors():
        launches = launches_of(step)
    assert [launch.name for launch in launches if launch.name in (*KERNELS, *NORMED)] == [
        *("strip_sums_kernel", "normed_strips_kernel", "strip_apply_fwd_kernel"),
        *("strip_sums_kernel", "normed_strips_bwd_kernel", "strip_apply_bwd_kernel"),
    ]
    for launch in launches:
        assert compiled_quickly(launch, target).spilled == 0, launch.name


@pytest.mark.parametrize("shape", [(2, 60, 7, 7), (3, 17, 33, 130)], ids=str)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=["contiguous", "channels_last"])
def test_odd_shapes(shape, memory_format):
    for with_shortcut in (False, True):
        for launch in block_launches("published.coordinate", shape, torch.bfloat16, memory_format, with_shortcut):
            assert compiled_quickly(launch, "sm_90").spilled == 0, launch.name
