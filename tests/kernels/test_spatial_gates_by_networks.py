"""CBAM by networks of PyTorch's as machine code: the spatial kernels with gates that come as a map spill nothing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counted.machine_code import TARGETS, block_launches
from benchmarks.counted.ptx import compiled_quickly

pytestmark = pytest.mark.compile

KERNELS = [
    "squeeze_fwd_kernel",
    "pooled_kernel",
    "spatial_pool_kernel",
    "spatial_apply_fwd_kernel",
    "spatial_gate_bwd_kernel",
    "spatial_pool_bwd_kernel",
    "spatial_apply_bwd_kernel",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(64, 256, 56, 56), (2, 60, 7, 7)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_spills_and_wide_words(
    target: str, shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    launches = block_launches("published.cbam", shape, dtype, memory_format, with_shortcut=True, target=target)
    assert [launch.name for launch in launches] == KERNELS
    for launch in launches:
        report = compiled_quickly(launch, target)
        assert report.spilled == 0, (launch.name, dtype)
        if shape[1] == 256 and launch.name.startswith("spatial"):
            assert report.widest_load >= 8, (launch.name, dtype)
