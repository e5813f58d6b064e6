"""The gating multiply by logits that come as a map, under the interpreter, against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.drawn import KINDS, sizes
from tests.parity import DTYPES, assert_within, away_from_the_kink, lay_out
from triton_attn.ops.map_gate import ACTIVATIONS, map_gate

pytestmark = pytest.mark.interpreter

Inputs = tuple[Tensor, Tensor, Tensor | None]


def plain(x: Tensor, logits: Tensor, shortcut: Tensor | None = None, activation: str = "sigmoid") -> Tensor:
    gate = {"sigmoid": 1, "double_sigmoid": 2}.get(activation, 0) * torch.sigmoid(logits)
    y = x * (logits if activation == "none" else gate)
    return y if shortcut is None else torch.relu(y + shortcut)


def gradients(function: object, inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad.to(y.dtype))]


def draw(
    shape: tuple[int, ...],
    outputs: int,
    dtype: torch.dtype,
    layout: str,
    with_shortcut: bool,
    activation: str = "sigmoid",
) -> tuple[Inputs, Tensor]:
    x, logits, shortcut = torch.randn(shape), torch.randn(shape[0], outputs, *shape[2:]), torch.randn(shape)
    x, logits, shortcut, grad = (lay_out(t.to(dtype), layout) for t in (x, logits, shortcut, torch.randn(shape)))
    if not with_shortcut:
        return (x, logits, None), grad
    before_relu = plain(x.double(), logits.double(), None, activation) + shortcut.double()
    return (x, logits, shortcut), away_from_the_kink(grad, before_relu)


def check(
    shape: tuple[int, ...],
    per_channel: bool,
    dtype: torch.dtype,
    layout: str,
    with_shortcut: bool,
    activation: str = "sigmoid",
) -> None:
    torch.manual_seed(0)
    inputs, grad = draw(shape, shape[1] if per_channel else 1, dtype, layout, with_shortcut, activation)
    ours = gradients(partial(map_gate, activation=activation), inputs, grad)
    exact = partial(plain, activation=activation)
    theirs = gradients(exact, inputs, grad)
    right = gradients(exact, tuple(None if t is None else t.double() for t in inputs), grad.double())
    for name, *each in zip(("y", "dx", "dlogits", "dshortcut"), ours, theirs, right, strict=False):
        assert_within(*each, name)


@settings(max_examples=8)
@given(
    **sizes(96, 33, 9),
    per_channel=st.booleans(),
    **KINDS,
    activation=st.sampled_from(ACTIVATIONS),
)
@example(1, 1, 1, 1, False, torch.float32, "contiguous", True, "sigmoid")
@example(2, 3, 33, 9, True, torch.float16, "channels_last", True, "double_sigmoid")
@example(2, 3, 33, 9, True, torch.float32, "channels_last", False, "none")
@example(2, 96, 7, 7, False, torch.float16, "contiguous", True, "sigmoid")
@example(2, 96, 7, 7, False, torch.float16, "channels_last", True, "double_sigmoid")
@example(2, 96, 7, 7, False, torch.bfloat16, "contiguous", True, "none")
def test_parity(
    batch: int,
    channels: int,
    height: int,
    width: int,
    per_channel: bool,
    dtype: torch.dtype,
    layout: str,
    with_shortcut: bool,
    activation: str,
) -> None:
    channels = max(min(channels, 2**13 // (batch * height * width)), 1)
    check((batch, channels, height, width), per_channel, dtype, layout, with_shortcut, activation)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", [(1, 1500, 3, 5), (2, 3, 45, 31), (1, 300, 7, 7)], ids=str)
def test_parity_over_many_tiles(shape: tuple[int, ...], per_channel: bool, layout: str) -> None:
    check(shape, per_channel, torch.float32, layout, with_shortcut=True)


@pytest.mark.parametrize(
    ("per_channel", "memory_format"), [(False, torch.contiguous_format), (True, torch.channels_last)], ids=str
)
def test_traffic(per_channel: bool, memory_format: torch.memory_format) -> None:
    """Every map once: x and y, dy, x and dx, and the logits and their gradient."""
    from benchmarks.counted.meter import count_kernels

    shape = (1, 320, 28, 28)
    x, grad = (torch.randn(shape).half().contiguous(memory_format=memory_format) for _ in range(2))
    logits = torch.randn(shape if per_channel else (1, 1, 28, 28)).half().contiguous(memory_format=memory_format)
    size, logits_size = x.numel() * 2, logits.numel() * 2
    leaves = x.requires_grad_(), logits.requires_grad_()
    with count_kernels() as forward:
        y = map_gate(*leaves)
    with count_kernels() as backward:
        torch.autograd.grad(y, leaves, grad)
    assert forward.total <= 1.02 * (2 * size + logits_size)
    assert backward.total <= 1.02 * (3 * size + 2 * logits_size)
    assert forward.total_sectors <= 1.15 * forward.total
    assert backward.total_sectors <= 1.15 * backward.total
    assert dict(forward.launches) == {"map_gate_fwd_kernel": 1}
    assert dict(backward.launches) == {"map_gate_bwd_kernel": 1}


def test_float16_sums_do_not_overflow() -> None:
    """Σ dy · x over channels is 1.2 million here, 18 times what float16 holds; σ' brings it back."""
    x, logits = torch.full((1, 400, 2, 3), 3000.0).half(), torch.full((1, 1, 2, 3), 7.0).half()
    ours = gradients(map_gate, (x, logits, None), torch.ones(1, 400, 2, 3).half())
    right = gradients(plain, (x.double(), logits.double(), None), torch.ones(1, 400, 2, 3).double())
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a.double(), b, atol=0, rtol=1e-3)


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_a_gate_of_exactly_one(with_shortcut: bool) -> None:
    # A sum is rounded to bfloat16 by a GPU, and cut off by the interpreter.
    for dtype in DTYPES[:2] if with_shortcut else DTYPES:
        (x, logits, shortcut), grad = draw((2, 8, 5, 3), 1, dtype, "contiguous", with_shortcut)
        y, dx, dlogits, *_ = gradients(partial(map_gate, activation="double_sigmoid"), (x, 0 * logits, shortcut), grad)
        assert torch.equal(y, x if shortcut is None else torch.relu(x + shortcut))
        assert with_shortcut or torch.equal(dx, grad)
        assert dlogits.any()


def test_only_what_is_asked_for_is_written() -> None:
    from benchmarks.counted.meter import count_kernels

    (x, logits, _), grad = draw((1, 8, 4, 4), 8, torch.float32, "contiguous", with_shortcut=False)

    def moved(wanted: str) -> int:
        leaves = x.detach().requires_grad_("x" in wanted), logits.detach().requires_grad_("z" in wanted)
        y = map_gate(*leaves)
        with count_kernels() as traffic:
            torch.autograd.grad(y, [t for t in leaves if t.requires_grad], grad)
        return traffic.total // (x.numel() * 4)

    assert (moved("xz"), moved("x"), moved("z")) == (5, 3, 4)


def test_logits_of_another_dtype() -> None:
    """As under autocast, where the convolutions before it are 16-bit."""
    torch.manual_seed(0)
    (x, logits, shortcut), grad = draw((2, 8, 5, 3), 8, torch.float32, "contiguous", with_shortcut=True)
    inputs = x, logits.bfloat16(), shortcut
    ours = gradients(map_gate, inputs, grad)
    theirs = gradients(plain, inputs, grad)
    right = gradients(plain, tuple(t.double() for t in inputs), grad.double())
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    for each in zip(ours, theirs, right, strict=True):
        assert_within(*each)


@pytest.mark.parametrize(("outputs", "layout"), [(1, "channels_last"), (6, "transposed")])
def test_opcheck(outputs: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    (x, logits, shortcut), grad = draw((2, 6, 5, 3), outputs, torch.float32, layout, with_shortcut=True)
    x, logits, shortcut = (t.detach().requires_grad_() for t in (x, logits, shortcut))
    op = torch.ops.triton_attn.map_gate.default
    torch.library.opcheck(op, (x, logits, shortcut, "sigmoid", True))
    torch.library.opcheck(op, (x.detach(), logits.detach(), None, "double_sigmoid", False))
    _, bits = op(x, logits, shortcut, "sigmoid", True)
    backward = torch.ops.triton_attn.map_gate_backward.default
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward, (grad, x.detach(), logits.detach(), bits, "sigmoid", *needs))
    torch.library.opcheck(backward, (grad, x.detach(), logits.detach(), None, "none", True, True))


def test_same_inputs_same_bits_and_grad_is_kept() -> None:
    inputs, grad = draw((2, 300, 5, 7), 1, torch.float16, "channels_last", with_shortcut=True)
    kept = grad.clone()
    first = gradients(map_gate, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(map_gate, inputs, grad), strict=True))
    assert torch.equal(grad, kept)
    alone = gradients(map_gate, tuple(t[1:] for t in inputs), grad[1:])
    assert all(torch.equal(a[1:], b) for a, b in zip(first, alone, strict=True))
