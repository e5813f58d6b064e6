"""The SE op under the interpreter, against the reference in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import triton_attn
from tests import parity
from tests.parity import DTYPES, LAYOUTS, assert_within, check_block, lay_out, run
from triton_attn import reference

pytestmark = pytest.mark.interpreter


def twins(channels: int, reduction: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    return parity.twins(lambda package: package.SEBlock(channels, reduction), dtype)


def check(
    shape: tuple[int, int, int, int], reduction: int, dtype: torch.dtype, layout: str, with_shortcut: bool
) -> None:
    build = lambda package: package.SEBlock(shape[1], reduction)  # noqa: E731
    check_block(build, shape, dtype, layout, with_shortcut=with_shortcut)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Maps of up to 33 × 33 and up to 96 channels, and of 2¹³ elements in all: the interpreter is slow."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 33)), draw(st.integers(1, 33))
    return batch, draw(st.integers(1, min(96, 2**13 // (batch * height * width)))), height, width


@settings(max_examples=30)
@given(
    shape=shapes(),
    reduction=st.integers(1, 16),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    with_shortcut=st.booleans(),
)
@example(shape=(1, 1, 1, 1), reduction=1, dtype=torch.float32, layout="contiguous", with_shortcut=True)
@example(shape=(3, 16, 1, 1), reduction=4, dtype=torch.float16, layout="contiguous", with_shortcut=True)
@example(shape=(2, 63, 7, 7), reduction=16, dtype=torch.float16, layout="channels_last", with_shortcut=True)
def test_parity(
    shape: tuple[int, int, int, int], reduction: int, dtype: torch.dtype, layout: str, with_shortcut: bool
) -> None:
    check(shape, min(reduction, shape[1]), dtype, layout, with_shortcut)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "reduction"), [((1, 3, 45, 47), 1), ((2, 300, 5, 4), 9), ((20, 24, 3, 3), 2)], ids=str
)
def test_parity_over_many_tiles(shape: tuple[int, int, int, int], reduction: int, layout: str) -> None:
    """Several splits of the positions, several blocks of every dense layer, several of the batch."""
    check(shape, reduction, torch.float32, layout, with_shortcut=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", ["no dx", "a fifth too small", "no dsum", "no mask"])
def test_the_rule_bites(fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward with a fault in it does not pass, in any dtype."""
    from triton_attn.ops import gating

    right = gating.apply_bwd

    def wrong(
        grad: Tensor, x: Tensor, gate: Tensor, dsum: Tensor, channels_last: bool, bits: Tensor
    ) -> tuple[Tensor, Tensor]:
        if fault == "no dsum":
            dsum = torch.zeros_like(dsum)
        if fault == "no mask":
            bits = torch.full_like(bits, 255)
        dx, dshortcut = right(grad, x, gate, dsum, channels_last, bits)
        factor = {"no dx": 0.0, "a fifth too small": 0.8}.get(fault, 1.0)
        return dx * factor, dshortcut * factor

    shape = (3, 16, 1, 2)
    check(shape, 4, dtype, "contiguous", with_shortcut=True)
    monkeypatch.setattr(gating, "apply_bwd", wrong)
    with pytest.raises(AssertionError, match="over the bound"):
        check(shape, 4, dtype, "contiguous", with_shortcut=True)


def test_only_what_is_asked_for_is_computed() -> None:
    from benchmarks.meter import count_kernels

    block = triton_attn.SEBlock(8, 2)
    x, shortcut = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4, requires_grad=True)

    def kernels(x: Tensor, shortcut: Tensor | None) -> set[str]:
        y = block(x, shortcut)
        with count_kernels() as traffic:
            y.sum().backward()
        return set(traffic.launches)

    assert "apply_gate_bwd_kernel" not in kernels(x, None)
    assert "apply_gate_bwd_kernel" in kernels(x, shortcut)
    block.requires_grad_(False)
    assert "bottleneck_weights_bwd_kernel" not in kernels(x, shortcut)
    assert x.grad is None


def test_float16_sums_do_not_overflow() -> None:
    """Σ x is 1.2 million here, 18 times what float16 holds, and Σ |grad · x| is as much."""
    torch.manual_seed(0)
    fast, exact = twins(8, 2, torch.float16)
    with torch.no_grad():
        for block in (fast, exact):
            block.fc1.weight.mul_(2**-11)  # gates that are not saturated
    x, grad = (3000 + torch.randn(1, 8, 20, 20)).half(), (1 + torch.randn(1, 8, 20, 20)).half()
    y, grads = run(fast, [x], grad)
    exact_y, exact_grads = run(exact, [x.double()], grad.double())
    assert x.sum() == float("inf")
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        # What is beyond float16 in the end is infinite, and nothing else is.
        assert torch.equal(ours.isinf(), right.abs() > 65520)
        finite = ours.isfinite()
        torch.testing.assert_close(ours[finite].double(), right[finite], atol=1e-3, rtol=3e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value: float, layout: str) -> None:
    torch.manual_seed(0)
    fast, exact = twins(4, 2, torch.float32)
    x, shortcut, grad = (torch.randn(2, 4, 3, 5) for _ in range(3))
    x[0, 1, 1, 2] = value
    shortcut[1, 2, 2, 2] = value
    inputs, keywords = [lay_out(x, layout), lay_out(shortcut, layout)], ["shortcut"]
    y, grads = run(fast, inputs, grad, keywords)
    exact_y, exact_grads = run(exact, [t.double() for t in inputs], grad.double(), keywords)
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-6, rtol=1e-5, equal_nan=True)


def test_zero_map_passes_the_gradient_as_relu_does() -> None:
    fast, exact = twins(4, 2, torch.float32)
    zero, grad = torch.zeros(1, 4, 3, 3), torch.ones(1, 4, 3, 3)
    _, (dx, dshortcut, *_) = run(fast, [zero, zero], grad, ["shortcut"])
    _, (exact_dx, exact_dshortcut, *_) = run(exact, [zero.double(), zero.double()], grad.double(), ["shortcut"])
    assert torch.equal(dx.double(), exact_dx)
    assert torch.equal(dshortcut.double(), exact_dshortcut)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_kept(layout: str) -> None:
    block = triton_attn.SEBlock(8, 2)
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


def test_shortcut_of_another_layout_or_an_expanded_gradient() -> None:
    torch.manual_seed(0)
    fast, exact = twins(8, 2, torch.float32)
    x, shortcut = torch.randn(2, 8, 5, 3), lay_out(torch.randn(2, 8, 5, 3), "channels_last")
    grad = torch.ones(()).expand(2, 8, 5, 3)
    y, grads = run(fast, [x, shortcut], grad, ["shortcut"])
    exact_y, exact_grads = run(exact, [x.double(), shortcut.double()], grad.double(), ["shortcut"])
    torch.testing.assert_close(y.double(), exact_y, atol=1e-5, rtol=1e-5)
    for ours, right in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 8, 5, 3), (2, 8, 0, 3)])
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_empty_maps(shape: tuple[int, ...], with_shortcut: bool) -> None:
    block = triton_attn.SEBlock(8, 2)
    inputs = [torch.randn(shape) for _ in range(1 + with_shortcut)]
    y, (dx, *grads) = run(block, inputs, torch.randn(shape), ["shortcut"] * with_shortcut)
    assert y.shape == dx.shape == shape
    if shape[0] == 0:
        assert all(not grad.any() for grad in grads[with_shortcut:])


def test_same_inputs_same_bits() -> None:
    torch.manual_seed(0)
    block = triton_attn.SEBlock(24, 4).half()
    x, shortcut, grad = (torch.randn(2, 24, 40, 30).half() for _ in range(3))
    y, grads = run(block, [x, shortcut], grad, ["shortcut"])
    for _ in range(2):
        again, grads_again = run(block, [x, shortcut], grad, ["shortcut"])
        assert torch.equal(y, again)
        assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def test_an_image_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    block = triton_attn.SEBlock(24, 4)
    x = torch.randn(5, 24, 35, 33)
    assert torch.equal(block(x)[3:4], block(x[3:4]))


def test_inference_saves_nothing_for_a_backward() -> None:
    block = triton_attn.SEBlock(8, 2)
    x = torch.randn(2, 8, 5, 3)
    with torch.no_grad():
        y = block(x, torch.randn_like(x))
    assert y.grad_fn is None
    *_, mean, _, _, bits = torch.ops.triton_attn.squeeze_excite(
        x, *(w.detach() for w in block.weights()), torch.randn_like(x), False
    )
    assert mean.numel() == bits.numel() == 0


def test_grad_output_is_not_overwritten() -> None:
    block = triton_attn.SEBlock(8, 2)
    x, shortcut, grad = (torch.randn(2, 8, 5, 3) for _ in range(3))
    kept = grad.clone()
    run(block, [x, shortcut], grad, ["shortcut"])
    assert torch.equal(grad, kept)


def test_gradients_of_a_part_of_the_inputs() -> None:
    torch.manual_seed(0)
    block, exact = twins(8, 2, torch.float32)
    x, shortcut = torch.randn(2, 8, 5, 3), torch.randn(2, 8, 5, 3)
    for parameter in (*block.parameters(), *exact.parameters()):
        parameter.requires_grad_(False)
    block.fc2.bias.requires_grad_()
    exact.fc2.bias.requires_grad_()
    block(x, shortcut).sum().backward()
    exact(x.double(), shortcut.double()).sum().backward()
    torch.testing.assert_close(block.fc2.bias.grad.double(), exact.fc2.bias.grad, atol=1e-5, rtol=1e-5)
    assert block.fc1.weight.grad is None


def test_a_second_derivative_is_refused() -> None:
    block = triton_attn.SEBlock(8, 2)
    x = torch.randn(1, 8, 3, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(x_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block, exact = twins(16, 4, torch.float32)
    x, shortcut, grad = (torch.randn(2, 16, 5, 6).to(x_dtype) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        y, grads = run(block, [x, shortcut], grad, ["shortcut"])
        with triton_attn.use_backend("reference"):
            plain_y, plain_grads = run(block, [x, shortcut], grad, ["shortcut"])
    exact_y, exact_grads = run(exact, [x.double(), shortcut.double()], grad.double(), ["shortcut"])
    assert_within(y, plain_y, exact_y, "y")
    for ours, plain, right in zip(grads, plain_grads, exact_grads, strict=True):
        assert_within(ours, plain, right)


def test_a_shortcut_of_a_wider_dtype_is_added_as_pytorch_adds_it() -> None:
    block = triton_attn.SEBlock(16, 4).bfloat16()
    x, shortcut = torch.randn(2, 16, 5, 6).bfloat16(), torch.randn(2, 16, 5, 6)
    y = block(x, shortcut)
    with triton_attn.use_backend("reference"):
        plain = block(x, shortcut)
    assert y.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(y, plain, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("saves", [False, True])
def test_opcheck(layout: str, saves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    torch.manual_seed(0)
    block = triton_attn.SEBlock(8, 2)
    x, shortcut = (lay_out(torch.randn(2, 8, 5, 3), layout) for _ in range(2))
    weights = [w.detach() for w in block.weights()]
    if saves:
        x, shortcut, *weights = (t.detach().requires_grad_() for t in (x, shortcut, *weights))
    op = torch.ops.triton_attn.squeeze_excite.default
    torch.library.opcheck(op, (x, *weights, shortcut, saves))
    torch.library.opcheck(op, (x, *weights, None, saves))
    if saves:
        *_, mean, hidden, gate, bits = op(x, *weights, shortcut, True)
        backward = torch.ops.triton_attn.squeeze_excite_backward.default
        grad = lay_out(torch.randn(2, 8, 5, 3), "contiguous")
        saved = [t.detach() for t in (x, weights[0], weights[2], mean, hidden, gate)]
        for needs in ((True, True), (True, False), (False, True)):
            torch.library.opcheck(backward, (grad, *saved, bits, *needs))
        torch.library.opcheck(backward, (grad, *saved, None, True, True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    torch.compiler.reset()
    block = triton_attn.SEBlock(16, 4)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
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


def test_the_same_after_a_deep_copy_and_a_state_dict() -> None:
    block = triton_attn.SEBlock(8, 2)
    x = torch.randn(2, 8, 5, 3)
    assert torch.equal(copy.deepcopy(block)(x), block(x))


def test_a_training_step_through_a_network() -> None:
    """ResNet-18 with SE in every block: the same loss and gradients as with the plain twins."""
    torch.manual_seed(0)
    fast = triton_attn.resnet18("se", where="block", num_classes=3)
    plain = reference.build_resnet("resnet18", "se", where="block", num_classes=3)
    plain.load_state_dict(fast.state_dict())
    exact = copy.deepcopy(plain).double()
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 2, 1])
    for model in (fast, plain, exact):
        inputs = images.double() if model is exact else images
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    served = triton_attn.explain(fast, images)
    assert [entry.backend for entry in served] == ["triton"] * 8
    for (name, ours), theirs, right in zip(
        fast.named_parameters(), plain.parameters(), exact.parameters(), strict=True
    ):
        scale = right.grad.norm()
        error, plain_error = (ours.grad - right.grad).norm() / scale, (theirs.grad - right.grad).norm() / scale
        assert error <= 2 * plain_error + 1e-6, name


def test_offsets_beyond_two_to_the_31_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second image lies more than 2³¹ elements behind the first, in memory that is never touched between."""
    monkeypatch.undo()  # to poison memory is to touch it
    torch.manual_seed(0)
    fast, exact = twins(8, 2, torch.float16)
    values, grad = torch.randn(2, 8, 4, 4).half(), torch.randn(2, 8, 4, 4).half()
    x = torch.empty(2**31 + 4096, dtype=torch.float16).as_strided((2, 8, 4, 4), (2**31 + 16, 16, 4, 1))
    x.copy_(values)
    y, (dx, *_) = run(fast, [x], grad)
    exact_y, (exact_dx, *_) = run(exact, [values.double()], grad.double())
    torch.testing.assert_close(y.double(), exact_y, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(dx.double(), exact_dx, atol=2e-3, rtol=2e-3)
