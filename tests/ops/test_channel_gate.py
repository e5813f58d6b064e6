"""The channel-gating ops (SE, coordinate, ECA) under the interpreter, against the reference in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import triton_attn
from benchmarks.counted.graphs import Graphs
from tests import parity
from tests.parity import DTYPES, LAYOUTS, assert_within, check_block, lay_out, run
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


def arguments_of(block: nn.Module, x: Tensor, shortcut: Tensor | None, saves: bool) -> tuple[Any, tuple[Any, ...]]:
    """The op behind a block, and its arguments."""
    weights = [w.detach().requires_grad_(saves) for w in weights_of(block)]
    if isinstance(block, triton_attn.ECABlock):
        return torch.ops.triton_attn.eca, (x, *weights, shortcut, "mean", "sigmoid", saves)
    linear = isinstance(block, triton_attn.CoordinateAttention)
    network = ("both", "none", "none") if linear else ("mean", "relu", "sigmoid")
    return torch.ops.triton_attn.channel_gate, (x, *weights, shortcut, *network, saves)


def weights_of(block: nn.Module) -> tuple[Tensor, ...]:
    return (block.conv.weight,) if isinstance(block, triton_attn.ECABlock) else block.weights()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Maps of up to 33 × 33 and up to 96 channels, and of 2¹³ elements in all: the interpreter is slow."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 33)), draw(st.integers(1, 33))
    return batch, draw(st.integers(1, min(96, 2**13 // (batch * height * width)))), height, width


@settings(max_examples=24)
@given(
    name=st.sampled_from(BLOCKS),
    shape=shapes(),
    size=st.integers(1, 16),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    with_shortcut=st.booleans(),
)
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
        return set(traffic.launches)

    squeeze, of_map = {"squeeze_bwd_kernel"}, {"apply_gate_bwd_kernel"}
    of_weights = {"partial_sums_kernel" if name == "eca" else "dense_weights_bwd_kernel"}
    network = {"neighbours_bwd_kernel" if name == "eca" else "dense_whole_bwd_kernel"}
    if name == "eca":
        assert kernels(x, None) == squeeze | network | of_weights
    else:  # the hidden units' gradient alone
        assert kernels(x, None) == squeeze | {"dense_hidden_bwd_kernel"} | of_weights
    assert kernels(x, shortcut) == squeeze | network | of_weights | of_map
    block.requires_grad_(False)
    assert kernels(x, shortcut) == squeeze | network | of_map


def test_a_network_that_is_not_small_has_a_launch_for_every_layer() -> None:
    from benchmarks.counted.meter import count_kernels

    torch.manual_seed(0)
    fast, exact = twins("se", 40, 1, torch.float32)  # 40 hidden units
    x, grad = torch.randn(2, 40, 3, 3), torch.randn(2, 40, 3, 3)
    with count_kernels() as traffic:
        y, grads = run(fast, [x], grad)
    kernels = {"dense_hidden_fwd_kernel", "dense_gate_fwd_kernel", "dense_hidden_bwd_kernel", "dense_pooled_bwd_kernel"}
    assert kernels < set(traffic.launches)
    exact_y, exact_grads = run(exact, [x.double()], grad.double())
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)
    assert x.grad is None


@pytest.mark.parametrize("name", BLOCKS)
def test_float16_sums_do_not_overflow(name: str) -> None:
    """Σ x is 1.2 million here, 18 times what float16 holds, and Σ |grad · x| is as much."""
    torch.manual_seed(0)
    fast, exact = twins(name, 8, 2, torch.float16)
    with torch.no_grad():
        for block in (fast, exact):
            next(block.parameters()).mul_(2**-11)  # gates that are not saturated
    x, grad = (3000 + torch.randn(1, 8, 20, 20)).half(), (1 + torch.randn(1, 8, 20, 20)).half()
    y, grads = run(fast, [x], grad)
    exact_y, exact_grads = run(exact, [x.double()], grad.double())
    assert x.sum() == float("inf")
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        # What is beyond float16 in the end is infinite, and nothing else is.
        assert torch.equal(ours.isinf(), right.abs() > 65520)
        finite = ours.isfinite()
        torch.testing.assert_close(ours[finite].double(), right[finite], atol=1e-3, rtol=3e-3)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value: float, layout: str, name: str) -> None:
    torch.manual_seed(0)
    fast, exact = twins(name, 4, 2, torch.float32)
    x, shortcut, grad = (torch.randn(2, 4, 3, 5) for _ in range(3))
    x[0, 1, 1, 2] = value
    shortcut[1, 2, 2, 2] = value
    inputs, keywords = [lay_out(x, layout), lay_out(shortcut, layout)], ["shortcut"]
    y, grads = run(fast, inputs, grad, keywords)
    exact_y, exact_grads = run(exact, [t.double() for t in inputs], grad.double(), keywords)
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-6, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", BLOCKS)
def test_zero_map_passes_the_gradient_as_relu_does(name: str) -> None:
    fast, exact = twins(name, 4, 2, torch.float32)
    zero, grad = torch.zeros(1, 4, 3, 3), torch.ones(1, 4, 3, 3)
    _, (dx, dshortcut, *_) = run(fast, [zero, zero], grad, ["shortcut"])
    _, (exact_dx, exact_dshortcut, *_) = run(exact, [zero.double(), zero.double()], grad.double(), ["shortcut"])
    torch.testing.assert_close(dx.double(), exact_dx)
    assert torch.equal(dshortcut.double(), exact_dshortcut)


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


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_kept(layout: str, name: str) -> None:
    block = block_of(name)
    x = lay_out(torch.randn(2, 8, 5, 3), layout)
    y, (dx, *_) = run(block, [x], torch.randn(2, 8, 5, 3))
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        assert y.stride() == dx.stride() == x.stride()
    elif layout == "batch slice":
        assert y.is_contiguous(memory_format=torch.channels_last)
    else:
        assert y.is_contiguous()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_served_layouts_are_not_copied(layout: str) -> None:
    from triton_attn.ops.layout import served

    for name in (layout, "batch slice", "channel slice"):
        x = lay_out(torch.randn(2, 8, 5, 3), name)
        assert served(x)[0] is x
    x = lay_out(torch.randn(2, 8, 5, 3), "transposed")
    assert served(x)[0] is not x


@pytest.mark.parametrize("name", BLOCKS)
def test_shortcut_of_another_layout_or_an_expanded_gradient(name: str) -> None:
    torch.manual_seed(0)
    fast, exact = twins(name, 8, 2, torch.float32)
    x, shortcut = torch.randn(2, 8, 5, 3), lay_out(torch.randn(2, 8, 5, 3), "channels_last")
    grad = torch.ones(()).expand(2, 8, 5, 3)
    y, grads = run(fast, [x, shortcut], grad, ["shortcut"])
    exact_y, exact_grads = run(exact, [x.double(), shortcut.double()], grad.double(), ["shortcut"])
    torch.testing.assert_close(y.double(), exact_y, atol=1e-5, rtol=1e-5)
    for ours, right in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("shape", [(0, 8, 5, 3), (2, 8, 0, 3)])
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_empty_maps(shape: tuple[int, ...], with_shortcut: bool, name: str) -> None:
    if name == "coordinate" and 0 in shape[1:]:
        pytest.skip("PyTorch has no maximum of nothing")
    block = block_of(name)
    inputs = [torch.randn(shape) for _ in range(1 + with_shortcut)]
    y, (dx, *grads) = run(block, inputs, torch.randn(shape), ["shortcut"] * with_shortcut)
    assert y.shape == dx.shape == shape
    if shape[0] == 0:
        assert all(not grad.any() for grad in grads[with_shortcut:])


@pytest.mark.parametrize("name", BLOCKS)
def test_same_inputs_same_bits(name: str) -> None:
    torch.manual_seed(0)
    block = block_of(name, 24, 4).half()
    x, shortcut, grad = (torch.randn(2, 24, 40, 30).half() for _ in range(3))
    y, grads = run(block, [x, shortcut], grad, ["shortcut"])
    for _ in range(2):
        again, grads_again = run(block, [x, shortcut], grad, ["shortcut"])
        assert torch.equal(y, again)
        assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize("name", BLOCKS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(0)
    block = block_of(name, 24, 4)
    x = torch.randn(5, 24, 35, 33)
    assert torch.equal(block(x)[3:4], block(x[3:4]))


@pytest.mark.parametrize("name", BLOCKS)
def test_inference_saves_nothing_for_a_backward(name: str) -> None:
    block = block_of(name)
    x = torch.randn(2, 8, 5, 3)
    with torch.no_grad():
        assert block(x, torch.randn_like(x)).grad_fn is None
    op, arguments = arguments_of(block, x, torch.randn_like(x), False)
    _, *saved = op(*arguments)
    assert sum(t.numel() for t in saved) == 0


@pytest.mark.parametrize("name", BLOCKS)
def test_grad_output_is_not_overwritten(name: str) -> None:
    block = block_of(name)
    x, shortcut, grad = (torch.randn(2, 8, 5, 3) for _ in range(3))
    kept = grad.clone()
    run(block, [x, shortcut], grad, ["shortcut"])
    assert torch.equal(grad, kept)


def test_gradients_of_a_part_of_the_inputs() -> None:
    torch.manual_seed(0)
    block, exact = twins("se", 8, 2, torch.float32)
    x, shortcut = torch.randn(2, 8, 5, 3), torch.randn(2, 8, 5, 3)
    for parameter in (*block.parameters(), *exact.parameters()):
        parameter.requires_grad_(False)
    block.fc2.bias.requires_grad_()
    exact.fc2.bias.requires_grad_()
    block(x, shortcut).sum().backward()
    exact(x.double(), shortcut.double()).sum().backward()
    torch.testing.assert_close(block.fc2.bias.grad.double(), exact.fc2.bias.grad, atol=1e-5, rtol=1e-5)
    assert block.fc1.weight.grad is None


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(x_dtype: torch.dtype, name: str) -> None:
    torch.manual_seed(0)
    block, exact = twins(name, 16, 4, torch.float32)
    x, shortcut, grad = (torch.randn(2, 16, 5, 6).to(x_dtype) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        y, grads = run(block, [x, shortcut], grad, ["shortcut"])
        with triton_attn.use_backend("reference"):
            plain_y, plain_grads = run(block, [x, shortcut], grad, ["shortcut"])
    exact_y, exact_grads = run(exact, [x.double(), shortcut.double()], grad.double(), ["shortcut"])
    assert_within(y, plain_y, exact_y, "y")
    for ours, plain, right in zip(grads, plain_grads, exact_grads, strict=True):
        assert_within(ours, plain, right)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_shortcut_of_a_wider_dtype_is_added_as_pytorch_adds_it(name: str) -> None:
    torch.manual_seed(0)
    block = block_of(name, 16, 4).bfloat16()
    x, shortcut = torch.randn(2, 16, 5, 6).bfloat16(), torch.randn(2, 16, 5, 6)
    y = block(x, shortcut)
    with triton_attn.use_backend("reference"):
        plain = block(x, shortcut)
    assert y.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(y, plain, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", BLOCKS)
def test_compiles_as_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    torch.compiler.reset()
    block = block_of(name, 16, 4)
    graphs = Graphs("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=graphs)
    for shape in ((2, 16, 5, 6), (3, 16, 7, 7)):
        x, shortcut, grad = (torch.randn(shape) for _ in range(3))
        x = x.contiguous(memory_format=torch.channels_last)
        y, grads = run(block, [x, shortcut], grad, ["shortcut"])
        leaves = [t.detach().requires_grad_() for t in (x, shortcut)]
        compiled_y = compiled(leaves[0], shortcut=leaves[1])
        assert torch.equal(compiled_y, y)
        compiled_grads = torch.autograd.grad(compiled_y, [*leaves, *block.parameters()], grad)
        assert all(torch.equal(a, b) for a, b in zip(compiled_grads, grads, strict=True))
    with torch.no_grad():
        assert torch.equal(compiled(x), block(x))
    assert graphs.all_served()


@pytest.mark.parametrize("name", BLOCKS)
def test_the_same_after_a_deep_copy(name: str) -> None:
    block = block_of(name)
    x = torch.randn(2, 8, 5, 3)
    assert torch.equal(copy.deepcopy(block)(x), block(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_offsets_beyond_two_to_the_31_elements(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second image lies more than 2³¹ elements behind the first, in memory that is never touched between."""
    monkeypatch.undo()  # to poison memory is to touch it
    torch.manual_seed(0)
    fast, exact = twins(name, 8, 2, torch.float16)
    values, grad = torch.randn(2, 8, 4, 4).half(), torch.randn(2, 8, 4, 4).half()
    x = torch.empty(2**31 + 4096, dtype=torch.float16).as_strided((2, 8, 4, 4), (2**31 + 16, 16, 4, 1))
    x.copy_(values)
    y, (dx, *_) = run(fast, [x], grad)
    exact_y, (exact_dx, *_) = run(exact, [values.double()], grad.double())
    torch.testing.assert_close(y.double(), exact_y, atol=4e-3, rtol=2e-3)
    torch.testing.assert_close(dx.double(), exact_dx, atol=4e-3, rtol=2e-3)
