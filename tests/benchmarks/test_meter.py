"""The meters count what is known beforehand."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.interpreter


def test_a_copy_counts_as_two_passes_and_a_strided_one_touches_more_sectors() -> None:
    import triton
    import triton.language as tl

    from benchmarks.meter import count_kernels
    from triton_attn.ops import launch

    @triton.jit
    def copy_kernel(y_ptr, x_ptr, size, STEP: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + i, tl.load(x_ptr + i * STEP, mask=i < size, other=0.0), mask=i < size)

    x, y = torch.randn(1, 1, 1, 4000), torch.empty(1, 1, 1, 1000)
    for step, sectors in ((1, 4000), (4, 16000)):
        with count_kernels() as traffic:
            launch.start(copy_kernel, (4,), x.device, y_ptr=y, x_ptr=x, size=1000, STEP=step, BLOCK=256)
        assert torch.equal(y[0, 0, 0], x[0, 0, 0, : 1000 * step : step])
        assert traffic.moved == {"map": 8000}
        assert abs(traffic.total_sectors - (4000 + sectors)) <= 2 * 32
        assert traffic.launches == traffic.map_launches == {"copy_kernel": 1}


def test_parameters_count_once_however_often_they_are_read() -> None:
    import triton_attn
    from benchmarks.meter import count_kernels

    block = triton_attn.SEBlock(32, 4)
    with count_kernels() as one, torch.no_grad():
        block(torch.randn(1, 32, 4, 4))
    with count_kernels() as many, torch.no_grad():
        block(torch.randn(9, 32, 4, 4))
    assert one.moved["parameter"] == many.moved["parameter"] == 4 * (2 * 32 * 8 + 32 + 8)
    assert many.moved["map"] == 9 * one.moved["map"]


def test_operators_of_pytorch() -> None:
    from benchmarks.meter import CountOperators

    x = torch.randn(1, 8, 16, 16)
    with CountOperators() as counted:
        x.mul(2.0).view(8, -1).relu_()
    assert counted.launches == 2
    assert counted.moved == 4 * x.numel() * x.itemsize
