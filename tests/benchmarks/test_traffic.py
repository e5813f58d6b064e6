"""The contract in T: what the SE block moves, forward and backward, in both layouts, at several shapes."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from benchmarks.meter import Traffic, count_kernels

pytestmark = pytest.mark.interpreter


def count(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, with_shortcut: bool
) -> tuple[Traffic, Traffic, int]:
    block = triton_attn.SEBlock(shape[1]).to(dtype)
    x, shortcut, grad = (torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(3))
    wanted = [x.requires_grad_(), *block.parameters()]
    if with_shortcut:
        wanted.append(shortcut.requires_grad_())
    with count_kernels() as forward:
        y = block(x, shortcut if with_shortcut else None)
    with count_kernels() as backward:
        torch.autograd.grad(y, wanted, grad)
    return forward, backward, x.numel() * x.itemsize


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(4, 64, 28, 28), (1, 64, 56, 56), (8, 16, 35, 35)], ids=str)
@pytest.mark.parametrize(
    ("with_shortcut", "forward_ceiling", "backward_ceiling"), [(False, 3.05, 4.05), (True, 4.1, 5.2)]
)
def test_ceilings(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    with_shortcut: bool,
    forward_ceiling: float,
    backward_ceiling: float,
) -> None:
    forward, backward, size = count(shape, dtype, memory_format, with_shortcut)
    assert forward.total <= forward_ceiling * size
    assert backward.total <= backward_ceiling * size
    assert forward.total_sectors + backward.total_sectors <= 1.15 * (forward.total + backward.total)
    assert forward.map_launches.total() == backward.map_launches.total() == 2
    assert forward.launches.total() == 4
    assert backward.launches.total() == 5
    # The mask is bits: one per element, written once and read twice.
    bits = shape[0] * shape[1] * shape[2] * shape[3] // 8
    if with_shortcut:
        assert bits <= forward.moved["mask"] <= 1.05 * bits
        assert 2 * bits <= backward.moved["mask"] <= 2.1 * bits
    else:
        assert forward.moved["mask"] == backward.moved["mask"] == 0


def test_inference_writes_no_mask() -> None:
    block = triton_attn.SEBlock(16)
    x = torch.randn(1, 16, 8, 8)
    with count_kernels() as forward, torch.no_grad():
        block(x, x)
    assert forward.moved["mask"] == 0


def test_the_check_fails_over_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import traffic

    shape = (1, 16, 28, 28)
    row = traffic.measure("se", channels_last=True, with_shortcut=True, shape=shape)
    assert row.excess() == []
    assert row.eager_forward + row.eager_backward > 2 * (row.ours_forward + row.ours_backward)
    monkeypatch.setitem(traffic.CEILINGS, "se", {True: (4.1, 4.0)})
    assert len(row.excess()) == 1


def test_the_whole_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import traffic

    monkeypatch.setattr("sys.argv", ["traffic", "--check"])
    assert traffic.main() == 0
    table = capsys.readouterr().out
    for name in triton_attn.list_attention():
        assert table.count(f"| {name} |") == 4
