"""Non-local attention: two ways to the same numbers, and memory that grows with H·W alone."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import triton_attn
from triton_attn import reference
from triton_attn.reference import ResNet, attention_by_rows
from triton_attn.reference.attention_by_rows import ROWS, AttentionByRows
from triton_attn.reference.non_local import EXPLICIT_POSITIONS, attend_explicit, attend_linear, attend_tiled
from triton_attn.reference.resnet import BasicBlock

LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * scale


def with_gradients(function, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    out = function(*leaves)
    out.backward(draw(*out.shape, seed=9).to(out.dtype))
    return (out.detach(), *(leaf.grad for leaf in leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("length", "source", "d", "dv"),
    [(37, 37, 8, 16), (50, 21, 8, 8), (21, 50, 16, 4), (1, 70, 3, 5), (33, 1, 5, 3), (600, 600, 4, 8)],
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_all_ways_agree(dtype, length, source, d, dv, scale):
    q, k, v = draw(2, length, d, seed=1), draw(2, source, d, seed=2), draw(2, source, dv, seed=3)
    exact = with_gradients(partial(attend_explicit, scale=scale), q, k, v)
    assert exact[0].shape == (2, length, dv)
    tolerance = 1e-11 if dtype == torch.float64 else 3e-5
    for attend in (attend_linear, attend_tiled, attend_explicit):
        found = with_gradients(partial(attend, scale=scale), *(t.to(dtype) for t in (q, k, v)))
        for one, oracle in zip(found, exact, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), oracle, rtol=tolerance, atol=tolerance)


def test_rows_are_differentiable_twice_and_by_torch_func(monkeypatch):
    monkeypatch.setattr(attention_by_rows, "ROWS", 2)
    inputs = [draw(2, *shape, seed=i).requires_grad_() for i, shape in enumerate([(5, 3), (4, 3), (4, 2)])]
    assert torch.autograd.gradcheck(AttentionByRows.apply, inputs)
    assert torch.autograd.gradgradcheck(AttentionByRows.apply, inputs)
    q, k, v = (t.detach() for t in inputs)

    def loss(attend, q):
        return attend(q, k, v).square().sum()

    ours, right = (torch.func.grad(partial(loss, attend))(q) for attend in (attend_linear, attend_explicit))
    torch.testing.assert_close(ours, right)
    batches = q.expand(3, *q.shape), torch.stack([k, k * 2, -k], 1), v
    ours, right = (torch.vmap(attend, (0, 1, None))(*batches) for attend in (attend_linear, attend_explicit))
    torch.testing.assert_close(ours, right)
    # A backward of several gradients at once, which can write over nothing either.
    y = AttentionByRows.apply(*inputs)
    of_each = torch.autograd.grad(y, inputs, torch.stack([y, -y]).detach(), is_grads_batched=True, retain_graph=True)
    for both, alone in zip(of_each, torch.autograd.grad(y, inputs, y.detach()), strict=True):
        torch.testing.assert_close(both, torch.stack([alone, -alone]))


@pytest.mark.filterwarnings("ignore")  # tracing warns of every look at a shape
def test_who_writes_operators_down_gets_few():
    block, x = reference.NonLocalBlock(4), draw(1, 4, 33, 40).float()
    assert attention_by_rows.serves(block.project(x)[0])
    exported = torch.export.export(block, (x,))
    assert sum("scaled_dot_product" in str(node.target) for node in exported.graph.nodes) == 1
    torch.testing.assert_close(exported.module()(x), block(x))
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), block(x))
    torch.testing.assert_close(torch.jit.trace(block, x)(x), block(x))


@pytest.mark.parametrize("attend", [attend_explicit, attend_linear, attend_tiled])
def test_scores_that_overflow_a_naive_softmax(attend):
    q, k, v = draw(1, 40, 8, seed=1, scale=40), draw(1, 30, 8, seed=2, scale=40), draw(1, 30, 6, seed=3)
    scores = (q @ k.transpose(1, 2)).float()
    assert scores.exp().isinf().any()
    exact = with_gradients(attend_explicit, q, k, v)
    found = with_gradients(attend, q.float(), k.float(), v.float())
    for one, oracle in zip(found, exact, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), oracle, rtol=2e-3, atol=2e-3 * oracle.abs().max().item())


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_block_above_the_threshold_equals_the_formula(layout, dtype):
    torch.manual_seed(0)
    block = reference.NonLocalBlock(6, dtype=dtype)
    side = int(EXPLICIT_POSITIONS**0.5)
    x = draw(2, 6, side + 1, side, seed=4).to(dtype).contiguous(memory_format=layout)
    shortcut = draw(2, 6, side + 1, side, seed=5).to(dtype)

    def run(forward) -> tuple[Tensor, ...]:
        block.zero_grad()
        found = with_gradients(forward, x, shortcut)
        return *found, *(p.grad.clone() for p in block.parameters())

    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for one, other in zip(run(block.forward), run(block.forward_explicit), strict=True):
        # At least 1: the gradient of key_conv.bias is zero but for rounding, since it shifts a whole row of scores.
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)
    assert block(x).is_contiguous(memory_format=layout)


@LAYOUTS
def test_small_maps_are_attended_in_their_own_layout(layout):
    torch.manual_seed(0)
    block, x = reference.NonLocalBlock(32), draw(2, 32, 9, 8).float().contiguous(memory_format=layout)
    q, k, v = block.project(x)
    # The sum behind it reads both maps row by row.
    assert attend_explicit(q, k, v).stride() == v.stride()


def test_large_maps_work_in_every_dtype():
    torch.manual_seed(0)
    exact = reference.NonLocalBlock(4, dtype=torch.float64)
    x = draw(1, 4, 33, 40)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        block = reference.NonLocalBlock(4, dtype=dtype)
        block.load_state_dict(exact.state_dict())
        y = block(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact(x), rtol=tolerance, atol=tolerance)
    block = exact.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x.float())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, block(x.float()), rtol=5e-2, atol=5e-2)
    assert block(torch.zeros(0, 4, 40, 40)).shape == (0, 4, 40, 40)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
        return out


def largest_of_a_step(forward, *inputs: Tensor) -> int:
    with Largest() as seen:
        forward(*inputs).square().mean().backward()
    return seen.elements


@LAYOUTS
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("cls", [reference.NonLocalBlock, triton_attn.NonLocalBlock])
def test_no_matrix_above_the_threshold(layout, with_shortcut, cls):
    block = cls(8)
    height, width = 25, 41  # 1025 positions
    assert height * width == EXPLICIT_POSITIONS + 1
    for scale in (1, 2, 3):
        large = draw(2, 8, height, scale * width, dtype=torch.float32)
        assert largest_of_a_step(block, large) == ROWS * scale * height * width
    x = draw(2, 8, height, width, dtype=torch.float32).contiguous(memory_format=layout).requires_grad_()
    inputs = (x, x.detach().clone()) if with_shortcut else (x,)
    assert largest_of_a_step(block, *inputs) == ROWS * height * width
    # The meter does see the matrix where there is one, and with it the branch that builds it.
    assert largest_of_a_step(block.forward_explicit, *inputs) == 2 * (height * width) ** 2
    small = draw(1, 8, 32, 32, dtype=torch.float32)
    assert largest_of_a_step(block, small) == EXPLICIT_POSITIONS**2


def test_no_matrix_under_autocast_or_without_gradients():
    block, x = reference.NonLocalBlock(8), draw(1, 8, 40, 40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert largest_of_a_step(block, x) == x.numel()
    with torch.no_grad(), Largest() as seen:
        block(x)
    assert seen.elements == ROWS * 40 * 40


# Where a position looks.


@LAYOUTS
def test_attention_from_gives_rows_of_the_matrix(layout):
    torch.manual_seed(0)
    block = reference.NonLocalBlock(6, dtype=torch.float64)
    x = draw(2, 6, 5, 7).contiguous(memory_format=layout)
    q, k, v = block.project(x)
    assert (q.shape, k.shape, v.shape) == ((2, 35, 3), (2, 35, 3), (2, 35, 6))
    matrix = torch.softmax(q @ k.transpose(1, 2), dim=-1)
    positions = [(0, 0), (4, 6), (2, 3), (0, 6), (2, 3)]
    rows = block.attention_from(x, positions)
    assert rows.shape == (2, 5, 5, 7)
    for i, (row, column) in enumerate(positions):
        torch.testing.assert_close(rows[:, i].flatten(1), matrix[:, row * 7 + column], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(rows.sum((2, 3)), torch.ones(2, 5, dtype=torch.float64))
    # With all rows at hand they give the block's own output.
    every = block.attention_from(x, [(row, column) for row in range(5) for column in range(7)]).flatten(2)
    torch.testing.assert_close(x + (every @ v).transpose(1, 2).reshape(x.shape), block(x), rtol=1e-12, atol=1e-12)
    assert block.attention_from(x, []).shape == (2, 0, 5, 7)


@pytest.mark.parametrize("position", [(5, 0), (0, 7), (-1, 0), (0, -1), (35, 1)])
def test_attention_from_refuses_positions_outside(position):
    block, x = reference.NonLocalBlock(6), torch.zeros(1, 6, 5, 7)
    with pytest.raises(ValueError, match=rf"positions must lie on the 5×7 map, got \({position[0]}, {position[1]}\)"):
        block.attention_from(x, [(0, 0), position])
    with pytest.raises(ValueError, match="x must be 4-D"):
        block.attention_from(x[0], [(0, 0)])


# Memory, as the process has it.


def resident(kind: str) -> float:
    """What the process holds (``VmRSS``), or held at most (``VmHWM``), in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) / 1024


def growth(call: Callable[[], object]) -> float:
    """By how many MiB a call lets the process grow at most.

    The heap is stirred: who frees large blocks has malloc take others from the heap from then on, where holes are.
    """
    stirred = [torch.ones(n << 18) for n in (8, 16, 24, 30)]
    pins = [torch.ones(100) for _ in range(100)]
    del stirred
    ctypes.CDLL(None).malloc_trim(0)  # or what is free already would not be seen to be used
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest is now
    call()
    del pins
    return resident("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="reads the peak from /proc")
def test_memory_is_linear_as_the_process_has_it():
    block, x = reference.NonLocalBlock(8), draw(1, 8, 80, 80, dtype=torch.float32).requires_grad_()
    matrix = 80**4 * 4 / 2**20
    block(x[:, :, :33, :33]).sum().backward()  # what is loaded once
    assert growth(lambda: block(x).sum().backward()) < matrix / 4
    with torch.no_grad():
        assert growth(lambda: block(x)) < matrix / 4
    assert growth(lambda: block.forward_explicit(x)) > matrix, "it sees the matrix where there is one"


def test_networks_take_the_linear_way():
    # Contiguous images give contiguous maps, whose projections are transposed views: they too must not fall back.
    model: nn.Module = ResNet(BasicBlock, (1, 1, 1, 1), 4, {"stem": triton_attn.NonLocalBlock})
    images = draw(2, 3, 96, 96, dtype=torch.float32)  # 48 × 48 at the stem
    assert largest_of_a_step(model, images) < 48**4
    assert largest_of_a_step(model, images.contiguous(memory_format=torch.channels_last)) < 48**4
