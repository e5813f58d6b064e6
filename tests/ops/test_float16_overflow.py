"""What is beyond float16 is infinite in every gradient of every block, or NaN: so GradScaler sees it."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from tests.parity import run, twins
from triton_attn import functional

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]
LARGEST = 65504


@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", triton_attn.list_attention())
def test_nothing_is_saturated(name: str, channels_last: bool, with_shortcut: bool) -> None:
    """A loss scaled by 2¹⁴, over a map of size 16: sums, products and what lies between them overflow."""
    torch.manual_seed(0)
    kind = type(triton_attn.create_attention(name, 32)).__name__
    fast, exact = twins(lambda package: getattr(package, kind)(32), torch.float16)
    x, grad, shortcut = 16 * torch.randn(1, 32, 4, 5), 2**14 * torch.randn(1, 32, 4, 5), torch.full((1, 32, 4, 5), 1e3)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs, keywords = [x, shortcut][: 1 + with_shortcut], ["shortcut"][:with_shortcut]
    inputs = [t.half().contiguous(memory_format=layout) for t in inputs]
    grad = grad.half().contiguous(memory_format=layout)
    _, ours = run(fast, inputs, grad, keywords)
    _, right = run(exact, [t.double() for t in inputs], grad.double(), keywords)
    with triton_attn.use_backend("reference"):
        _, plain = run(fast, inputs, grad, keywords)
    seen = 0
    for what, a, b, c in zip(["x", *keywords, *dict(fast.named_parameters())], ours, right, plain, strict=True):
        over = (b.abs() > 1.05 * LARGEST) & ~c.isfinite()
        seen += int(over.sum())
        assert not a[over].isfinite().any(), f"{what}: {a[over]} for {b[over]}"
    assert seen > 0


@pytest.mark.parametrize("name", ["pixel", "gate"])
def test_what_lies_between_is_not_saturated(name: str) -> None:
    """The hidden gradient, 262,144, is beyond float16; what x has of it, 16,384, is not, and would be 4,094."""
    channels, hidden = 32, 16
    x, grad = torch.ones(1, channels, 4, 5), torch.full((1, channels, 4, 5), 2.0**15)
    outputs = channels if name == "pixel" else 1
    first = [torch.full((hidden, channels, 1, 1), 2.0**-8), torch.ones(hidden)]
    last = [torch.ones(outputs, hidden, 1, 1), torch.full((outputs,), -hidden * (1 + channels / 2**8))]  # gates of 1/2
    nothing = [torch.zeros_like(t) for t in first] if name == "gate" else []
    gated = functional.pixel_attention if name == "pixel" else functional.attention_gate
    found = []
    for backend in ("triton", "reference"):
        leaves = [t.half().requires_grad_() for t in (x, *first, *nothing, *last)]
        with triton_attn.use_backend(backend):
            found.append(torch.autograd.grad(gated(*leaves), leaves, grad.half()))
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours.isfinite(), plain.isfinite())
    assert not found[0][0].isfinite().any()
