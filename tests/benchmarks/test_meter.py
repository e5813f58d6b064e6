"""The meter counts what is known beforehand."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.counted.meter import Roles, count

pytestmark = pytest.mark.interpreter


def copy_kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def copy_kernel(y_ptr, x_ptr, size, STEP: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + i, tl.load(x_ptr + i * STEP, mask=i < size, other=0.0), mask=i < size)

    return copy_kernel


def start_copy(y: torch.Tensor, x: torch.Tensor, step: int = 1) -> None:
    from triton_attn.ops import launch

    grid = (-(-y.numel() // 256),)
    launch.start(copy_kernel(), grid, x.device, y_ptr=y, x_ptr=x, size=y.numel(), STEP=step, BLOCK=256)


def test_a_copy_counts_as_two_passes_and_a_strided_one_touches_more_sectors() -> None:
    x, y = torch.randn(1, 1, 1, 4000), torch.empty(1, 1, 1, 1000)
    for step, sectors in ((1, 4000), (4, 16000)):
        with count() as traffic:
            start_copy(y, x, step)
        assert torch.equal(y[0, 0, 0], x[0, 0, 0, : 1000 * step : step])
        assert traffic.moved == {"map": 8000}
        assert abs(traffic.total_sectors - (4000 + sectors)) <= 2 * 32
        assert traffic.launches == traffic.map_launches == {"copy_kernel": 1}


def test_a_view_within_a_buffer_has_its_own_role() -> None:
    buffer = torch.zeros(1200)
    small, large = buffer[:200], buffer[200:]
    with count(large) as traffic:
        start_copy(small, large)
        start_copy(large[:600], large[:600])
    assert traffic.moved == {"vector": 800, "map": 800 + 4800}


def test_roles() -> None:
    x = torch.empty(2, 64, 8, 8)
    roles = Roles(x.numel(), frozenset({(4, 64), (64,)}))
    for role, t in {
        "map": x[:, :32],
        "vector": x[:, :16],
        "mask": torch.empty(x.numel() // 8, dtype=torch.uint8),
        "parameter": torch.empty(4, 64, 1, 1),
    }.items():
        assert roles.of(t) == role
    assert roles.of(x.flatten()) == "map"
    assert roles.of(torch.empty(9, 4, 65), "dweight_ptr") == "parameter"
    assert Roles().of(torch.empty(1, 1, 1, 1)) == "map"


def test_parameters_count_once_however_often_they_are_read() -> None:
    import triton_attn

    block = triton_attn.SEBlock(32, 4)
    one_map, many_maps = torch.randn(1, 32, 12, 12), torch.randn(9, 32, 12, 12)
    with count(one_map, block.parameters()) as one, torch.no_grad():
        block(one_map)
    with count(many_maps, block.parameters()) as many, torch.no_grad():
        block(many_maps)
    # A launch reads a parameter once. More launches may share them.
    least = 4 * (2 * 32 * 8 + 32 + 8)
    assert least <= one.moved["parameter"] == many.moved["parameter"] <= 2 * least
    assert many.moved["map"] == 9 * one.moved["map"] == 9 * 3 * one_map.numel() * 4


def test_operators_of_pytorch() -> None:
    x = torch.randn(1, 8, 16, 16)
    size = x.numel() * x.itemsize
    with count() as counted:
        x.mul(2.0).view(8, -1).relu_()
    assert counted.launches == {"mul": 1, "relu_": 1}
    assert counted.moved == {"map": 2 * size, "vector": 2 * size}
    assert counted.total_sectors == 4 * size


def test_what_allocates_looks_or_overwrites_reads_nothing() -> None:
    x, y = torch.randn(1, 8, 16, 16), torch.empty(1, 8, 16, 16)
    size = x.numel() * x.itemsize
    with count() as counted:
        torch.empty_like(x), x.new_empty(5), x.transpose(1, 2), x.expand(4, -1, -1, -1)
    assert counted.total == counted.launches.total() == 0
    for operation, passes in (
        (lambda: torch.zeros_like(x), 1),
        (lambda: x.new_zeros(x.shape), 1),
        (lambda: y.fill_(1.0), 1),
        (lambda: y.copy_(x), 2),
        (lambda: torch.add(x, x[:, :, :1, :1].expand_as(x), out=y), 2 + 1 / 256),
    ):
        with count() as counted:
            operation()
        assert counted.total == passes * size
        assert counted.launches.total() == 1


def test_what_an_op_of_ours_calls_is_counted_and_the_op_itself_is_not() -> None:
    from triton_attn.ops.library import IMPLEMENTATIONS

    a, b = torch.randn(64, 32), torch.randn(32, 64)

    def implementation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = torch.relu(a @ b)
        out = torch.empty_like(product)
        start_copy(out, product)
        return out

    # Any operator will do in the place of ours.
    with mock.patch.dict(IMPLEMENTATIONS, {torch.ops.aten.hypot.default: implementation}), count() as counted:
        result = torch.hypot(a, b)
    assert torch.equal(result, torch.relu(a @ b))
    assert counted.launches == {"mm": 1, "relu": 1, "copy_kernel": 1}
    assert counted.moved == {"vector": 4 * (2 * 64 * 32 + 64 * 64 + 4 * 64 * 64)}


def test_the_meter_changes_nothing() -> None:
    import triton_attn

    block, x = triton_attn.SEBlock(16), torch.randn(2, 16, 8, 8, requires_grad=True)
    plain = torch.autograd.grad(block(x).sum(), [x, *block.parameters()])
    with count(x, block.parameters()):
        counted = torch.autograd.grad(block(x).sum(), [x, *block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))


def test_an_address_outside_of_every_tensor_is_an_error() -> None:
    x, y = torch.randn(1, 1, 1, 4000), torch.empty(1, 1, 1, 100)
    with count(), pytest.raises(Exception, match="lie in none of its tensors"):
        start_copy(x, y)
