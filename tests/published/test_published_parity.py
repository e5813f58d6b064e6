"""Published blocks on Triton, under the interpreter, against float64: outputs and all gradients, in training too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import triton_attn
from tests.ops.subjects import filled
from tests.parity import DTYPES, LAYOUTS, assert_within, away_from_the_kink, largest_error, lay_out
from triton_attn.reference.registry import PUBLISHED as PLAIN
from triton_attn.registry import PUBLISHED

pytestmark = pytest.mark.interpreter

SERVED = {
    "published.cbam": {},
    "published.coordinate": {},
    "published.eca": {},
    "published.gate": {},
    "published.grid_gate": {},
    "published.nonlocal": {},
    "published.pixel": {},
    "published.position": {},
    "published.danet": {"dropout": 0.0},
    "published.se": {},
    "published.global_context": {},
    "published.scse": {},
    "published.simam": {},
}
# Biases that a softmax or a batch norm behind them takes out again: their gradients are rounding alone.
IDLE = {
    "published.coordinate": {"conv1.bias"},
    "published.danet": {"position.key_conv.bias"},
    "published.gate": {"x_conv.bias", "g_conv.bias", "psi.bias"},
    "published.global_context": {"conv.bias"},
    "published.grid_gate": {"W.bias"},
    "published.nonlocal": {"phi.bias", "g.bias", "out.bias"},
    "published.position": {"key_conv.bias"},
}


def run(block: nn.Module, inputs: list[Tensor], grad: Tensor, keywords: list[str]) -> list[Tensor]:
    """The output and the gradients of inputs and parameters, and then the buffers, which training may have moved."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = block(leaves[0], **dict(zip(keywords, leaves[1:], strict=True)))
    found = torch.autograd.grad(y, [*leaves, *block.parameters()], grad.to(y.dtype))
    return [y.detach(), *found, *(each.clone() for each in block.buffers() if each.is_floating_point())]


def check(
    name: str,
    dtype: torch.dtype,
    layout: str,
    training: bool,
    with_shortcut: bool,
    shape: tuple[int, int, int, int] = (2, 32, 5, 7),
    **options: object,
) -> None:
    """By the rule; how far plain PyTorch is off is luck in a single draw, so that of several counts."""
    keywords = ["shortcut"] if with_shortcut else []
    options = {**SERVED[name], **options}

    def draw(seed: int) -> tuple[nn.Module, list[Tensor], Tensor, list[Tensor], list[Tensor]]:
        torch.manual_seed(seed)
        fast = filled(PUBLISHED[name](shape[1], **options)).to(dtype).train(training)
        state = {key: value.clone() for key, value in fast.state_dict().items()}
        exact = PLAIN[name](shape[1], **options).double().train(training)
        exact.load_state_dict(state)
        inputs = [lay_out(torch.randn(shape).to(dtype), layout) for _ in range(1 + with_shortcut)]
        grad = lay_out(torch.randn(shape).to(dtype), layout)
        if with_shortcut:
            with torch.no_grad():
                before_relu = exact(inputs[0].double()) + inputs[1].double()
            exact.load_state_dict(state)
            grad = away_from_the_kink(grad, before_relu)
        with triton_attn.use_backend("reference"):
            plain = run(fast, inputs, grad, keywords)
        fast.load_state_dict(state)
        right = run(exact, [t.double() for t in inputs], grad.double(), keywords)
        return fast, inputs, grad, plain, right

    fast, inputs, grad, plain, right = draw(0)
    draws = [draw(seed) for seed in range(1, 8)]
    (entry,) = triton_attn.explain(fast, inputs[0])
    assert entry.backend == "triton"
    with triton_attn.use_backend("triton"):
        ours = run(fast, inputs, grad, keywords)
    buffers = [key for key, value in fast.named_buffers() if value.is_floating_point()]
    names = ["y", "dx", *keywords, *dict(fast.named_parameters()), *buffers]
    for i, (what, each) in enumerate(zip(names, ours, strict=True)):
        if (training and what in IDLE.get(name, set())) or what.endswith("key_conv.bias"):
            assert each.isfinite().all()
            continue
        error = max(
            largest_error(plain[i], right[i]), *(largest_error(theirs[i], exact[i]) for *_, theirs, exact in draws)
        )
        assert_within(each, plain[i], right[i], what, plain_error=error)


# Training, layout and shortcut do not meet in a kernel: two cases have each of them both ways.
@pytest.mark.parametrize(
    ("training", "layout", "with_shortcut"), [(True, "channels_last", True), (False, "contiguous", False)]
)
@pytest.mark.parametrize("name", SERVED)
def test_parity(name: str, training: bool, layout: str, with_shortcut: bool) -> None:
    check(name, torch.float32, layout, training, with_shortcut)


@pytest.mark.parametrize(("name", "dtype"), [(name, DTYPES[1 + i % 2]) for i, name in enumerate(SERVED)], ids=str)
def test_parity_in_16_bits(name: str, dtype: torch.dtype) -> None:
    check(name, dtype, "channels_last", training=False, with_shortcut=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("published.se", {"norm": True, "bias": False}),
        ("published.nonlocal", {"mode": "gaussian", "scale": 0.2}),
        ("published.nonlocal", {"subsample": False, "norm": False, "hidden_channels": 5}),
        ("published.gate", {"identity": True}),
        ("published.pixel", {"identity": True}),
        ("published.coordinate", {"identity": True, "bias": False}),
        ("published.cbam", {"hidden_channels": 3, "kernel_size": 3}),
        ("published.grid_gate", {"identity": True, "stride": 3}),
    ],
    ids=str,
)
def test_parity_of_options(name: str, options: dict[str, object]) -> None:
    check(name, torch.float32, "contiguous", training=True, with_shortcut=False, **options)


# Batch norms of few values, in 16 bits, make of a rounding what the rule does not allow for: float32 alone in training.
@pytest.mark.parametrize("name", SERVED)
@settings(max_examples=3)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(32, 45),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    dtype=st.sampled_from([torch.float32, None, *DTYPES[1:]]),
    layout=st.sampled_from(LAYOUTS),
    with_shortcut=st.booleans(),
)
def test_parity_of_what_is_drawn(
    name: str,
    batch: int,
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype | None,
    layout: str,
    with_shortcut: bool,
) -> None:
    """Shapes, strides and blocks; None is training."""
    shape = batch, channels, height, width
    check(name, dtype or torch.float32, layout, dtype is None, with_shortcut, shape)


def test_parity_of_a_batch_norm_that_is_folded() -> None:
    check("published.se", torch.float32, "channels_last", training=False, with_shortcut=True, norm=True)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_identity_is_exact_on_triton_too(name: str) -> None:
    torch.manual_seed(0)
    for dtype, layout in zip(DTYPES, ("contiguous", "channels_last", "channels_last"), strict=True):
        block = PUBLISHED[name](32, identity=True).to(dtype)
        x = lay_out(torch.randn(2, 32, 5, 7).to(dtype), layout)
        assert torch.equal(block(x), x)
        if dtype != torch.bfloat16:  # whose sums the interpreter cuts off
            shortcut = lay_out(torch.randn(2, 32, 5, 7).to(dtype), layout)
            assert torch.equal(block(x, shortcut=shortcut), torch.relu(x + shortcut))


# Of the others test_every_op.py has it.
SUBJECTS = {f"published.{name}" for name in ("cbam", "coordinate", "gate", "global_context", "pixel", "scse", "simam")}


@pytest.mark.parametrize("name", sorted({*PUBLISHED} - SUBJECTS))
def test_layout_dtype_and_autocast(name: str) -> None:
    torch.manual_seed(0)
    block = filled(PUBLISHED[name](32)).eval()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 32, 5, 7).contiguous(memory_format=layout)
        y = block(x)
        assert y.dtype == x.dtype
        assert y.is_contiguous(memory_format=layout)
        with triton_attn.use_backend("reference"):
            torch.testing.assert_close(y, block(x), rtol=1e-4, atol=1e-5)
        for own in (x, x.bfloat16()):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = block(own, shortcut=own)
                with triton_attn.use_backend("reference"):
                    expected = block(own, shortcut=own)
            assert y.dtype == expected.dtype
            torch.testing.assert_close(y, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("name", ["published.gate", "published.grid_gate"])
def test_a_signal_of_its_own(name: str) -> None:
    torch.manual_seed(0)
    block = PUBLISHED[name](8, gating_channels=6).eval()
    x, gating, shortcut = torch.randn(2, 8, 6, 6), torch.randn(2, 6, 3, 3), torch.randn(2, 8, 6, 6)
    with triton_attn.use_backend("triton"):
        ours = block(x, gating, shortcut)
    with triton_attn.use_backend("reference"):
        torch.testing.assert_close(ours, block(x, gating, shortcut))
    with pytest.raises(ValueError, match="gating must be given"):
        block(x)


@pytest.mark.parametrize("name", sorted({*PUBLISHED} - {*SERVED}))
def test_what_has_no_kernel_says_so(name: str) -> None:
    block, x = PUBLISHED[name](32), torch.randn(1, 32, 4, 4)
    (entry,) = triton_attn.explain(block, x)
    assert entry.backend == "reference"
    assert entry.reason
    with triton_attn.use_backend("triton"), pytest.raises(triton_attn.BackendError, match="cannot serve"):
        block(x)
