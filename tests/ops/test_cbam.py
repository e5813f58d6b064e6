"""CBAM and dual attention, which are one op, under the interpreter against the reference in float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import triton_attn
from tests import parity
from tests.ops.calls import kernels_of_backward
from tests.ops.drawn import KINDS, shapes
from tests.parity import DTYPES, check_block, clear_maxima, lay_out, run

pytestmark = pytest.mark.interpreter

BLOCKS = ("CBAM", "DualAttentionBlock")
both_blocks = pytest.mark.parametrize("name", BLOCKS)
both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def make(name: str, channels: int, reduction: int) -> nn.Module:
    return getattr(triton_attn, name)(channels, reduction)


def twins(name: str, channels: int, reduction: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    return parity.twins(lambda package: getattr(package, name)(channels, reduction), dtype)


def check(
    name: str, shape: tuple[int, int, int, int], reduction: int, dtype: torch.dtype, layout: str, with_shortcut: bool
) -> None:
    check_block(
        lambda package: getattr(package, name)(shape[1], reduction),
        shape,
        dtype,
        layout,
        with_shortcut=with_shortcut,
        prepare=clear_maxima,
        any_order=False,
    )


@settings(max_examples=5)
@given(name=st.sampled_from(BLOCKS), shape=shapes(), reduction=st.integers(1, 16), **KINDS)
@example(name="CBAM", shape=(1, 1, 1, 1), reduction=1, dtype=torch.float32, layout="contiguous", with_shortcut=True)
@example(
    name="DualAttentionBlock",
    shape=(3, 16, 1, 1),
    reduction=4,
    dtype=torch.float16,
    layout="contiguous",
    with_shortcut=True,
)
@example(
    name="CBAM", shape=(2, 63, 7, 7), reduction=16, dtype=torch.float16, layout="channels_last", with_shortcut=True
)
def test_parity(
    name: str, shape: tuple[int, int, int, int], reduction: int, dtype: torch.dtype, layout: str, with_shortcut: bool
) -> None:
    check(name, shape, min(reduction, shape[1]), dtype, layout, with_shortcut)


@pytest.mark.parametrize(("name", "layout"), [("CBAM", "channels_last"), ("DualAttentionBlock", "contiguous")])
@pytest.mark.parametrize(
    ("shape", "reduction"),
    [((1, 3, 45, 47), 1), ((1, 200, 3, 150), 25), ((2, 300, 5, 4), 3), ((20, 24, 3, 3), 2)],
    ids=str,
)
def test_parity_over_many_tiles(name: str, shape: tuple[int, int, int, int], reduction: int, layout: str) -> None:
    """Several blocks of positions, several of channels and of hidden channels, several of the batch."""
    check(name, shape, reduction, torch.float32, layout, with_shortcut=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", ["no maximum", "another winner", "no mean", "no dsum", "no mask"])
def test_the_rule_bites(fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward with a fault in it does not pass, in any dtype."""
    from triton_attn.ops import spatial

    right = spatial.apply_bwd

    def wrong(grad, x, gate, dsum, spatial_gate, dpooled, winner, channels_last, bits):
        dpooled = dpooled.clone()
        if fault == "no mean":
            dpooled[:, 0] = 0
        if fault == "no maximum":
            dpooled[:, 1] = 0
        if fault == "another winner":
            winner = (winner + 1) % x.shape[1]
        if fault == "no dsum":
            dsum = torch.zeros_like(dsum)
        if fault == "no mask":
            bits = torch.full_like(bits, 255)
        return right(grad, x, gate, dsum, spatial_gate, dpooled, winner, channels_last, bits)

    def build(package: ModuleType) -> nn.Module:
        block = package.CBAM(4, 1)
        with torch.no_grad():
            # A gradient that comes by way of the pooled values in good part.
            block.spatial_attention.weight.mul_(torch.tensor([12.0, 4.0]).view(1, 2, 1, 1))
            block.channel_attention.fc1.weight.mul_(1.5)
        return block

    def check() -> None:
        shape = (3, 4, 1, 2)
        check_block(build, shape, dtype, "contiguous", with_shortcut=True, prepare=clear_maxima, any_order=False)

    check()
    monkeypatch.setattr(spatial, "apply_bwd", wrong)
    with pytest.raises(AssertionError, match="over the bound"):
        check()


@both_blocks
@both_layouts
def test_tied_maxima_give_the_gradient_to_the_first(name: str, layout: str) -> None:
    """Zeros behind a ReLU, equal channels in every block of them, and a map that is zero everywhere."""
    torch.manual_seed(0)
    fast, exact = twins(name, 72, 8, torch.float32)
    for block in (fast, exact):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)  # all channels' gates are equal, and so their ties exact
                nn.init.zeros_(module.bias)
    zero = torch.zeros(1, 72, 5, 6)
    equal = torch.randn(1, 1, 5, 6).expand(1, 72, 5, 6)
    twice = torch.cat([-torch.ones(1, 8, 5, 6), *(torch.randn(1, 32, 5, 6),) * 2], 1)
    behind_relu = torch.randn(1, 72, 5, 6).sub(2).relu()
    for values in (zero, equal, twice, behind_relu):
        grad = torch.randn(1, 72, 5, 6)
        _, grads = run(fast, [lay_out(values, layout)], grad)
        _, exact_grads = run(exact, [values.double()], grad.double())
        for ours, right in zip(grads, exact_grads, strict=True):
            torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)


@both_blocks
@both_layouts
def test_gates_of_twice_a_sigmoid(layout: str, name: str) -> None:
    """What ``identity=True`` makes of the gates, once it has learnt something."""

    def build(package: ModuleType) -> nn.Module:
        torch.manual_seed(0)
        block = getattr(package, name)(16, 4, identity=True)
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        return block

    x = lay_out(torch.randn(2, 16, 9, 5), layout)
    assert torch.equal(getattr(triton_attn, name)(16, 4, identity=True)(x), x)
    check_block(build, (2, 16, 9, 5), torch.float32, layout, with_shortcut=True, prepare=clear_maxima)


@both_blocks
def test_only_what_is_asked_for_is_computed(name: str) -> None:
    from benchmarks.counted.meter import count_kernels

    block = make(name, 8, 2)
    x, shortcut = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4, requires_grad=True)

    def kernels(*given: Tensor | None) -> set[str]:
        return kernels_of_backward(block(*given))

    assert "spatial_apply_bwd_kernel" not in kernels(x, None)
    assert "spatial_apply_bwd_kernel" in kernels(x, shortcut)
    moved = []
    for frozen in (False, True):
        y = block.requires_grad_(not frozen)(x, shortcut)
        with count_kernels() as traffic:
            y.sum().backward()
        moved.append(traffic.moved["parameter"])
    assert moved[0] - moved[1] == sum(each.nbytes for each in block.parameters())
    assert x.grad is None


@both_blocks
def test_the_function_is_the_block(name: str) -> None:
    block = make(name, 8, 2)
    x, shortcut = torch.randn(2, 8, 3, 5), torch.randn(2, 8, 3, 5)
    function = triton_attn.functional.cbam if name == "CBAM" else triton_attn.functional.dual
    assert torch.equal(function(x, *block.parameters(), shortcut), block(x, shortcut))


@both_blocks
@both_layouts
def test_traffic(name: str, layout: str) -> None:
    """The contract, counted: over the map 4 passes forward and 5 backward, one more of each with a shortcut."""
    shape, dtype, with_shortcut = (1, 96, 30, 32), torch.float32, True
    from benchmarks.counted.meter import count_kernels
    from triton_attn.tuning import rules, spatial_rules

    torch.manual_seed(0)
    block = make(name, shape[1], 16).to(dtype)
    x, shortcut, grad = (lay_out(torch.randn(shape).to(dtype), layout) for _ in range(3))
    wanted = [x.requires_grad_(), *block.parameters(), *([shortcut.requires_grad_()] if with_shortcut else [])]
    with count_kernels() as forward:
        y = block(x, shortcut if with_shortcut else None)
    with count_kernels() as backward:
        torch.autograd.grad(y, wanted, grad)
    size = x.numel() * x.itemsize
    more = name == "DualAttentionBlock"  # a second bottleneck
    assert forward.launches.total() == 5 + more
    assert backward.launches.total() == 7 + 2 * more
    assert forward.moved["map"] == (4 + with_shortcut) * size
    assert backward.moved["map"] == (5 + with_shortcut) * size
    assert forward.moved["mask"] == with_shortcut * x.numel() // 8
    assert backward.moved["mask"] == with_shortcut * x.numel() // 4
    assert backward.total <= 1.02 * (6 + with_shortcut * 9 / 8) * size
    assert forward.total_sectors + backward.total_sectors <= 1.15 * (forward.total + backward.total)

    # Beside the map go float32 values per position, and parts of them for each chunk of channels: forward the pooled
    # ones (written, and read with three rows around a block) and the gate; backward the gate, its gradient, the winner,
    # and the gradients of the pooled values.
    batch, channels, height, width = shape
    config = spatial_rules.spatial(channels, height * width, 4)
    blocks, chunks = -(-height * width // config["BLOCK_P"]), -(-channels // config["CHUNK"])
    block_p = spatial_rules.conv(height * width, width, chunks)["BLOCK_P"]
    positions, around = batch * height * width, 1 + (6 * width + 6) / block_p
    taps = 2 * 4 * 148 / block_p
    vector = 4 * batch * channels  # one (N, C) float32: every block reads or writes some
    # A gate network in one launch reads the parts, and eight vectors at most, again for every tile of channels.
    tiles = -(-channels // rules.dense_whole(channels, channels // 16, blocks, 4, 0, False)["TILE_C"])
    parts = (2 + more + (1 + more) * (tiles - 1)) * rules.splits(channels, height * width, layout == "channels_last")
    assert forward.moved["vector"] <= positions * (12 + chunks * (12 + 8 * around)) + vector * (
        8 + 8 * more + parts + 2 * blocks
    )
    assert backward.moved["vector"] <= positions * (20 + 4 * around + chunks * (48 + 4 * around) + taps) + vector * (
        16 + 16 * more + (7 + 2 * more) * blocks + (1 + more) * (tiles - 1) * (blocks + 8)
    )
