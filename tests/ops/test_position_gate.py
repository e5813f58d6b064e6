"""Pixel attention and the attention gate under the interpreter, against their references in float64."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import triton_attn
from benchmarks.counted.graphs import Graphs
from tests import parity
from tests.ops.drawn import KINDS
from tests.parity import DTYPES, LAYOUTS, assert_within, check_block, largest_error, lay_out, run
from triton_attn import functional, reference
from triton_attn.ops.library import or_none
from triton_attn.ops.wide_gate import WIDE_GATE

pytestmark = pytest.mark.interpreter

BLOCKS = ("pixel", "gate")


def builder(
    name: str, channels: int, dtype: torch.dtype = torch.float32, gating_channels: int | None = None
) -> Callable[[ModuleType], nn.Module]:
    """Makes the block of either package; pixel attention of fewer than 16 channels has one hidden channel.

    At 16 bits rounding decides whether the hidden ReLU passes, where its input is small: there the biases keep it away.
    """

    def build(package: ModuleType) -> nn.Module:
        if name == "gate":
            block = package.AttentionGate(channels, gating_channels)
        else:
            block = package.AttentionModule(max(channels, 16))
            if channels < 16:
                block.conv1, block.conv2 = nn.Conv2d(channels, 1, 1), nn.Conv2d(1, channels, 1)
        if dtype != torch.float32:
            with torch.no_grad():
                block.conv1.bias[::2] += 4
                block.conv1.bias[1::2] -= 4
        return block

    return build


def twins(name: str, channels: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    return parity.twins(builder(name, channels), dtype)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Maps of up to 33 × 33 and up to 96 channels, and of 2¹² elements in all: the interpreter is slow."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 33)), draw(st.integers(1, 33))
    return batch, draw(st.integers(2, max(min(96, 2**12 // (batch * height * width)), 2))), height, width


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=4)
@given(shape=shapes(), **KINDS)
@example(shape=(1, 2, 1, 1), dtype=torch.float32, layout="contiguous", with_shortcut=True)
@example(shape=(2, 63, 7, 7), dtype=torch.float16, layout="channels_last", with_shortcut=True)
@example(shape=(1, 40, 5, 8), dtype=torch.bfloat16, layout="contiguous", with_shortcut=False)
def test_parity(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str, with_shortcut: bool
) -> None:
    check_block(builder(name, shape[1], dtype), shape, dtype, layout, with_shortcut=with_shortcut)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("shape", [(1, 200, 3, 7), (1, 256, 4, 5), (2, 272, 3, 3)], ids=str)
def test_parity_of_many_channels(shape: tuple[int, int, int, int], name: str, dtype: torch.dtype, layout: str) -> None:
    """Up to 256 channels one kernel does it, where the weights are not too large; beyond, the library multiplies."""
    check_block(builder(name, shape[1], dtype), shape, dtype, layout, with_shortcut=True)


def test_opcheck_of_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a channels_last map that is one op, with the library's products within it."""
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    x, shortcut, grad = (lay_out(torch.randn(2, 272, 3, 3), "channels_last") for _ in range(3))
    parameters = [each.detach() for each in triton_attn.AttentionGate(272).parameters()]
    weight1, bias1, more_weight, more_bias, weight2, bias2 = parameters
    tensors = x, weight1, bias1, weight2, bias2, more_weight, more_bias
    static = ("test_schema", "test_autograd_registration", "test_faketensor")
    op, backward = WIDE_GATE.forward.registered, WIDE_GATE.backward.registered
    leaves = [each.clone().requires_grad_() for each in tensors]
    torch.library.opcheck(op, (*leaves, shortcut, "sigmoid", True), test_utils=static)
    for tail, second in ((shortcut, tensors[5:]), (None, (None, None))):
        given = *tensors[:5], *second
        _, *kept = op(*given, tail, "sigmoid", True)
        kept = [or_none(each) for each in kept]
        torch.library.opcheck(backward, (grad, *given, *kept, "sigmoid", True, True), test_utils=static)
    torch.library.opcheck(backward, (grad, *given, *kept, "sigmoid", True, False), test_utils=static)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", BLOCKS)
def test_parity_over_many_programs(name: str, layout: str) -> None:
    """Several programs of several tiles each, with the last run and every image's last tile cut short."""
    from triton_attn.tuning import position_rules, rules

    shape = (5, 2, 21, 23)
    programs, run_length = position_rules.position_gate_runs(5 * 2 * 483, 5 * rules.cdiv(483, 64), 8)
    assert programs > 1
    assert run_length > 1
    check_block(builder(name, 2), shape, torch.float32, layout, with_shortcut=True)


def draw_gated(
    shape: tuple[int, int, int, int], gating: tuple[int, int, int], dtype: torch.dtype, layout: str
) -> tuple[list[Tensor], Tensor]:
    inputs = [torch.randn(shape), torch.randn(shape[0], *gating), torch.randn(shape)]
    return [lay_out(t.to(dtype), layout) for t in inputs], lay_out(torch.randn(shape).to(dtype), layout)


@settings(max_examples=5)
@given(
    shape=shapes(),
    gating=st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
)
@example(shape=(2, 20, 6, 7), gating=(33, 6, 7), dtype=torch.float32, layout="channels_last")
@example(shape=(1, 300, 3, 4), gating=(8, 2, 2), dtype=torch.float32, layout="contiguous")
@example(shape=(2, 20, 6, 7), gating=(33, 3, 3), dtype=torch.float16, layout="channel slice")
def test_parity_with_a_gating_signal(
    shape: tuple[int, int, int, int], gating: tuple[int, int, int], dtype: torch.dtype, layout: str
) -> None:
    """A signal of another channel count and size, and the gradients of it and of its convolution."""
    build = builder("gate", shape[1], dtype, gating[0])
    keywords = ["gating", "shortcut"]

    def draw(seed: int) -> tuple[nn.Module, list[Tensor], Tensor, list[Tensor], list[Tensor]]:
        torch.manual_seed(seed)
        fast, exact = parity.twins(build, dtype)
        inputs, grad = draw_gated(shape, gating, dtype, layout)
        with torch.no_grad():
            gated = exact(inputs[0].double(), inputs[1].double())
            grad = parity.away_from_the_kink(grad, gated + inputs[2].double())
        with triton_attn.use_backend("reference"):
            plain_y, plain_grads = run(fast, inputs, grad, keywords)
        exact_y, exact_grads = run(exact, [t.double() for t in inputs], grad.double(), keywords)
        return fast, inputs, grad, [plain_y, *plain_grads], [exact_y, *exact_grads]

    fast, inputs, grad, plain, exact = draw(0)
    others = [draw(seed)[3:] for seed in range(1, 12)]
    with triton_attn.use_backend("triton"):
        y, grads = run(fast, inputs, grad, keywords)
    names = ["y", *(f"gradient of {name}" for name in ("x", *keywords, *dict(fast.named_parameters())))]
    for i, (name, ours) in enumerate(zip(names, [y, *grads], strict=True)):
        plain_error = max(largest_error(a[i], b[i]) for a, b in ((plain, exact), *others))
        assert_within(ours, plain[i], exact[i], name, plain_error=plain_error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", ["dx", "dparameters", "dshortcut"])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_rule_bites(name: str, fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is a fifth too small does not pass, in any dtype."""
    from triton_attn.ops import position_gate

    right = position_gate.POSITION_GATE.backward
    index = ["dx", "dsignal", "dshortcut", "dparameters"].index(fault)

    def wrong(*arguments: object) -> list[Tensor]:
        return [each * 0.8 if i == index and each is not None else each for i, each in enumerate(right(*arguments))]

    monkeypatch.setattr(position_gate.POSITION_GATE, "backward", wrong)
    with pytest.raises(AssertionError, match="over the bound"):
        check_block(builder(name, 16, dtype), (2, 16, 3, 4), dtype, "contiguous", with_shortcut=True)


def test_only_what_is_asked_for_is_computed() -> None:
    from benchmarks.counted.meter import count_kernels

    block = triton_attn.AttentionGate(8, 5)
    x, gating, shortcut = torch.randn(1, 8, 4, 4), torch.randn(1, 5, 4, 4), torch.randn(1, 8, 4, 4)

    def backward_of(*wanted: Tensor) -> dict[str, int]:
        for each in (x, gating, shortcut, *block.parameters()):
            each.requires_grad_(any(each is t for t in wanted))
        y = block(x, gating, shortcut)
        with count_kernels() as traffic:
            grads = torch.autograd.grad(y.sum(), wanted)
        assert all(grad.shape == t.shape for grad, t in zip(grads, wanted, strict=True))
        assert x.grad is gating.grad is shortcut.grad is None
        return dict(traffic.launches) | {"moved": traffic.total}

    every = backward_of(x, gating, shortcut, *block.parameters())
    assert every["partial_sums_kernel"] == 1
    maps = backward_of(x, shortcut)
    weights = backward_of(*block.parameters())
    assert "partial_sums_kernel" not in maps
    assert "partial_sums_kernel" in weights
    # Neither pass writes what the other does: dx and dshortcut here, dsignal there.
    assert maps["moved"] <= every["moved"] - 4 * 4 * 16
    assert weights["moved"] <= every["moved"] - 2 * 4 * 8 * 16


def test_both_weights_of_a_gate_by_itself_have_a_gradient_of_their_own() -> None:
    block = triton_attn.AttentionGate(8)
    block(torch.randn(2, 8, 5, 3)).sum().backward()
    assert torch.equal(block.conv1.weight.grad, block.conv2.weight.grad)
    block.conv1.weight.grad.zero_()
    assert block.conv2.weight.grad.any()


def test_compiles_with_a_gating_signal_and_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    torch.compiler.reset()
    block = triton_attn.AttentionGate(16, 12)
    graphs = Graphs("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=graphs)
    inputs = [torch.randn(2, 16, 6, 8), torch.randn(2, 12, 3, 4)]
    grad = torch.randn(2, 16, 6, 8)
    # The compiler resizes by a decomposition of its own.
    (y, grads), (right_y, right) = (run(each, inputs, grad, ["gating"]) for each in (compiled, block))
    for a, b in zip([y, *grads], [right_y, *right], strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        x, gating = torch.randn(2, 16, 6, 8), torch.randn(2, 12, 3, 4)
        torch.testing.assert_close(compiled(x, gating=gating), block(x, gating=gating))
    assert graphs.all_served()


@pytest.mark.parametrize("hidden", [1, 7, 200])
def test_functions_of_any_hidden_width(hidden: int) -> None:
    """200 hidden channels of 40 are too many for one kernel, and served all the same."""
    torch.manual_seed(0)
    x = torch.randn(2, 40, 3, 5)
    weights = [torch.randn(hidden, 40, 1, 1) / 6, torch.randn(hidden), torch.randn(40, hidden, 1, 1) / 6]
    weights.append(torch.randn(40))
    y = functional.pixel_attention(x, *weights)
    right = reference.pixel.pixel_attention(x.double(), *(w.double() for w in weights))
    torch.testing.assert_close(y.double(), right, atol=1e-5, rtol=1e-5)
    weights = [*weights[:2], *weights[:2], torch.randn(1, hidden, 1, 1) / 6, torch.randn(1)]
    y = functional.attention_gate(x, *weights)
    right = reference.attention_gate.attention_gate(x.double(), [w.double() for w in weights])
    torch.testing.assert_close(y.double(), right, atol=1e-5, rtol=1e-5)


def test_partial_bytes_stay_small() -> None:
    """The programs leave float32 sums of all parameters: few where the map is small, an SM's worth where it is not."""
    from triton_attn.tuning import chips, position_rules, rules

    def programs(shape: tuple[int, int, int, int], hidden: int, outputs: int) -> int:
        batch, channels, height, width = shape
        block_p = position_rules.position_gate_bwd(channels, hidden, 2, channels, chips.CHIPS["sm_90"])["BLOCK_P"]
        parameters = hidden * (channels + 1) + outputs * (hidden + 1)
        tiles = batch * rules.cdiv(height * width, block_p)
        count, run_length = position_rules.position_gate_runs(batch * channels * height * width, tiles, parameters)
        assert (count - 1) * run_length < tiles <= count * run_length
        return count

    assert programs((2, 64, 56, 56), 32, 1) == 1
    assert programs((2, 64, 56, 56), 4, 64) == 5
    assert 120 <= programs((64, 256, 56, 56), 128, 1) <= 128
    assert 120 <= programs((64, 64, 112, 112), 32, 1) <= 256
