"""The channel-gating ops (SE, coordinate, ECA) under the interpreter, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import triton_attn
from tests import parity
from tests.ops.drawn import KINDS, shapes
from tests.parity import DTYPES, check_block, lay_out, run
from triton_attn import functional

pytestmark = pytest.mark.interpreter

BLOCKS = ("se", "coordinate", "eca")
CLASSES = {"se": "SEBlock", "coordinate": "CoordinateAttention", "eca": "ECABlock"}


def build(name: str, channels: int, size: int) -> parity.Build:
    """Makes a block of so many channels; ``size`` is the reduction, or half the kernel size."""
    argument = 2 * size + 1 if name == "eca" else size
    return lambda package: getattr(package, CLASSES[name])(channels, argument)


def block_of(name: str, channels: int = 8, size: int = 2) -> nn.Module:
    return build(name, channels, size)(triton_attn)


def twins(name: str, channels: int, size: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    return parity.twins(build(name, channels, size), dtype)


@settings(max_examples=12)
@given(name=st.sampled_from(BLOCKS), shape=shapes(), size=st.integers(1, 16), **KINDS)
@example(name="se", shape=(1, 1, 1, 1), size=1, dtype=torch.float32, layout="contiguous", with_shortcut=True)
@example(name="eca", shape=(1, 1, 1, 1), size=1, dtype=torch.float32, layout="contiguous", with_shortcut=True)
@example(name="coordinate", shape=(1, 1, 1, 1), size=1, dtype=torch.float32, layout="contiguous", with_shortcut=True)
@example(name="se", shape=(3, 16, 1, 1), size=4, dtype=torch.float16, layout="contiguous", with_shortcut=True)
@example(name="se", shape=(2, 63, 7, 7), size=16, dtype=torch.float16, layout="channels_last", with_shortcut=True)
@example(name="eca", shape=(2, 63, 7, 7), size=2, dtype=torch.float16, layout="channels_last", with_shortcut=True)
@example(
    name="coordinate", shape=(2, 63, 7, 7), size=16, dtype=torch.float16, layout="channels_last", with_shortcut=True
)
def test_parity(
    name: str, shape: tuple[int, int, int, int], size: int, dtype: torch.dtype, layout: str, with_shortcut: bool
) -> None:
    size = min(size, shape[1]) if name != "eca" else size % 4
    check_block(build(name, shape[1], size), shape, dtype, layout, with_shortcut=with_shortcut)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "size"), [((1, 3, 45, 47), 1), ((2, 300, 5, 4), 9), ((20, 24, 3, 3), 2)], ids=str)
def test_parity_over_many_tiles(shape: tuple[int, int, int, int], size: int, layout: str, name: str) -> None:
    """Several splits of the positions, several blocks of every layer, several of the batch."""
    check_block(build(name, shape[1], size), shape, torch.float32, layout, with_shortcut=True)


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid", "none"])
@pytest.mark.parametrize("pool", ["mean", "max", "both"])
@pytest.mark.parametrize(
    ("layout", "hidden_activation", "tied"), [("contiguous", "relu", True), ("channels_last", "none", False)]
)
def test_every_pool_and_activation(pool: str, activation: str, layout: str, hidden_activation: str, tied: bool) -> None:
    """The functions, on maps with several splits; behind a ReLU, where many maxima are tied, or not."""
    torch.manual_seed(0)
    x, shortcut, grad = (torch.randn(2, 12, 3, 5) for _ in range(3))
    x = torch.cat([x, x.flip(0)] * 40, 3) if pool == "both" else x
    x, shortcut, grad = (t if t.shape == x.shape else torch.randn_like(x) for t in (x, shortcut, grad))
    x, shortcut, grad = (lay_out(t, layout) for t in (x.relu() if tied else x, shortcut, grad))
    dense = [torch.randn(5, 12), torch.randn(5), torch.randn(12, 5), torch.randn(12)]

    def gradients(
        function: Callable[..., Tensor], weights: list[Tensor], backend: Any, dtype: torch.dtype, **options: str
    ) -> list[Tensor]:
        leaves = [t.to(dtype).detach().requires_grad_() for t in (x, *weights, shortcut)]
        with triton_attn.use_backend(backend):
            y = function(*leaves, pool=pool, activation=activation, **options)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]

    for function, weights, options in (
        (functional.channel_gate, dense, {"hidden_activation": hidden_activation}),
        (functional.eca, [torch.randn(5)], {}),
    ):
        ours = gradients(function, weights, "triton", torch.float32, **options)
        exact = gradients(function, weights, "reference", torch.float64, **options)
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a.double(), b, atol=1e-4 * b.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", ["no dx", "a fifth too small", "no dmean", "no mask"])
def test_the_rule_bites(fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward with a fault in it does not pass, in any dtype."""
    from triton_attn.ops import gating

    right = gating.apply_bwd

    def wrong(
        grad: Tensor, x: Tensor, gate: Tensor, bits: Tensor, channels_last: bool, pooled: Any, dmean: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        if fault == "no dmean":
            dmean = torch.zeros_like(dmean)
        if fault == "no mask":
            bits = torch.full_like(bits, 255)
        dx, dshortcut = right(grad, x, gate, bits, channels_last, pooled, dmean, *rest)
        factor = {"no dx": 0.0, "a fifth too small": 0.8}.get(fault, 1.0)
        return dx * factor, dshortcut * factor

    shape = (3, 16, 1, 2)
    check_block(build("se", 16, 4), shape, dtype, "contiguous", with_shortcut=True)
    monkeypatch.setattr(gating, "apply_bwd", wrong)
    with pytest.raises(AssertionError, match="over the bound"):
        check_block(build("se", 16, 4), shape, dtype, "contiguous", with_shortcut=True)


@pytest.mark.parametrize("name", BLOCKS)
def test_only_what_is_asked_for_is_computed(name: str) -> None:
    from benchmarks.counted.meter import count_kernels

    block = block_of(name)
    x, shortcut = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4, requires_grad=True)

    def kernels(x: Tensor, shortcut: Tensor | None) -> set[str]:
        y = block(x, shortcut)
        with count_kernels() as traffic:
            y.sum().backward()
        moved.append(traffic.moved["parameter"])
        return set(traffic.launches)

    moved: list[int] = []
    squeeze, of_map = {"squeeze_bwd_kernel"}, {"apply_gate_bwd_kernel"}
    small = {"neighbours_bwd_kernel"} if name == "eca" else {"dense_whole_bwd_kernel"}
    of_weights = {"dense_hidden_bwd_kernel", "dense_bwd_kernel"}
    if name == "eca":
        of_weights = small | {"partial_sums_kernel"}
    assert kernels(x, None) == squeeze | of_weights
    assert kernels(x, shortcut) == squeeze | small | of_map
    block.requires_grad_(False)
    assert kernels(x, shortcut) == squeeze | small | of_map
    gradients = sum(each.nbytes for each in block.parameters())
    assert moved[1] - moved[2] == gradients
    if name != "eca":
        # The first layer's weight makes the gradient of what was pooled.
        assert moved[1] - moved[0] == next(block.parameters()).nbytes


def test_a_network_that_is_not_small_has_a_launch_for_every_layer() -> None:
    from benchmarks.counted.meter import count_kernels

    torch.manual_seed(0)
    fast, exact = twins("se", 72, 1, torch.float32)  # 72 hidden units
    x, grad = torch.randn(2, 72, 3, 3), torch.randn(2, 72, 3, 3)
    with count_kernels() as traffic:
        y, grads = run(fast, [x], grad)
    assert {"dense_hidden_fwd_kernel", "dense_gate_fwd_kernel"} < set(traffic.launches)
    exact_y, exact_grads = run(exact, [x.double()], grad.double())
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)
    assert x.grad is None


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tied_maxima_share_the_gradient_evenly(dtype: torch.dtype, layout: str) -> None:
    """Over several splits: one winner, two in one split, one in each of two, and a map of one value."""
    fast, exact = twins("coordinate", 4, 2, dtype)
    x = torch.randn(2, 4, 40, 40).clamp(max=2.0)
    x[:, 0, 7, 30] = 3.0
    x[:, 1, 5, 6:8] = 3.0
    x[:, 2, 3, 9] = x[:, 2, 39, 11] = 3.0
    x[:, 3] = -1.0
    x, grad = lay_out(x.to(dtype), layout), torch.zeros(2, 4, 40, 40).to(dtype)
    grad[:, :, 0, 0] = 1.0  # what reaches the other positions comes through the gate
    _, (dx, *_) = run(fast, [x], grad)
    _, (exact_dx, *_) = run(exact, [x.double()], grad.double())
    scale = exact_dx.abs().max().item()
    torch.testing.assert_close(dx.double(), exact_dx, atol=2 * torch.finfo(dtype).eps * scale, rtol=1e-2)
    dmax = dx - dx[:, :, 20:21, 20:21]  # the mean's share is the same everywhere
    assert torch.equal(dmax[:, 1, 5, 6], dmax[:, 1, 5, 7])
    assert torch.equal(dmax[:, 2, 3, 9], dmax[:, 2, 39, 11])
    assert not dmax[:, 0].flatten(1)[:, 1:].count_nonzero(1).ne(1).any()


@pytest.mark.parametrize("tied", [False, True])
def test_the_map_is_read_again_only_where_maxima_are_tied(tied: bool) -> None:
    from benchmarks.counted.meter import count_kernels

    torch.manual_seed(0)
    block = block_of("coordinate", 16, 2)
    x = torch.randn(1, 16, 40, 40)
    if tied:
        x = x.clamp(max=0.5)
    y = block(x.requires_grad_())
    with count_kernels() as traffic:
        torch.autograd.grad(y, x, torch.randn_like(y))
    passes = traffic.moved["map"] / (x.numel() * x.itemsize)
    assert passes == (5.0 if tied else 4.0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_served_layouts_are_not_copied(layout: str) -> None:
    from triton_attn.ops.layout import served

    for name in (layout, "batch slice", "channel slice"):
        x = lay_out(torch.randn(2, 8, 5, 3), name)
        assert served(x)[0] is x
    x = lay_out(torch.randn(2, 8, 5, 3), "transposed")
    assert served(x)[0] is not x
