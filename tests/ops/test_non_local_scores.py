"""Non-local attention's scores under the interpreter: large, equal and not finite ones, and biases that cancel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import triton_attn
from tests.ops.attention import LAYOUTS, build, check_attention, draw, with_gradients
from tests.parity import DTYPES, lay_out, run, twins
from triton_attn import functional
from triton_attn.ops import non_local_tiled
from triton_attn.reference.non_local import attend_explicit

pytestmark = [
    pytest.mark.interpreter,
    # NumPy's, where infinities meet in the interpreter, as they are meant to.
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|All-NaN slice) encountered:RuntimeWarning"),
]


@pytest.mark.parametrize("dv", [8, 200], ids=["tiled", "whole"])
@pytest.mark.parametrize("size", [6, 40])
def test_scores_that_overflow_a_naive_softmax(size: float, dv: int) -> None:
    """Scores of some hundreds, and of over ten thousand, which float32 itself knows to a thousandth only."""
    q, k, v, grad = (draw(1, n, c, seed=i) for i, (n, c) in enumerate(((40, 8), (70, 8), (70, dv), (40, dv))))
    q, k = size * q, size * k
    scores = q @ k.transpose(1, 2)
    assert scores.exp().isinf().any()
    ours = with_gradients(functional.nonlocal_attention, [q, k, v], grad)
    exact = with_gradients(attend_explicit, [t.double() for t in (q, k, v)], grad.double())
    known = 2 * torch.finfo(torch.float32).eps * scores.abs().max().item()
    # Of dq and dk, what the scores' gradients may be, times k and q: dq is a difference of such terms.
    dscore = (grad @ v.transpose(1, 2)).abs().max()
    scales = (v.abs().max(), dscore * k.abs().max(), dscore * q.abs().max(), exact[3].abs().max())
    for a, b, scale in zip(ours, exact, scales, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.0, atol=known * scale.item())


@pytest.mark.parametrize("dv", [8, 200], ids=["tiled", "whole"])
def test_rows_of_equal_scores_are_means(dv: int) -> None:
    q, k, v, grad = (draw(1, n, c, seed=i) for i, (n, c) in enumerate(((33, 8), (65, 8), (65, dv), (33, dv))))
    k = k[:, :1].expand(1, 65, 8)
    y, dq, dk, dv_ = with_gradients(functional.nonlocal_attention, [q, k, v], grad)
    torch.testing.assert_close(y, v.mean(1, keepdim=True).expand_as(y), atol=1e-5, rtol=1e-5)
    exact = with_gradients(attend_explicit, [t.double() for t in (q, k, v)], grad.double())
    for ours, right in zip((y, dq, dk, dv_), exact, strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dv", [8, 200], ids=["tiled", "whole"])
@pytest.mark.parametrize(
    ("tensor", "value"), [("q", float("nan")), ("k", float("nan")), ("v", float("inf")), ("k", float("inf"))]
)
def test_values_that_are_not_finite(tensor: str, value: float, dv: int) -> None:
    """One of a key's channels is infinite: its scores are +inf for some queries, and -inf for the others."""
    inputs = {name: draw(2, n, c, seed=i) for i, (name, n, c) in enumerate((("q", 33, 4), ("k", 70, 4), ("v", 70, dv)))}
    inputs[tensor][0, 5, 1] = value
    grad = draw(2, 33, dv, seed=9)
    ours = with_gradients(functional.nonlocal_attention, list(inputs.values()), grad)
    exact = with_gradients(attend_explicit, [t.double() for t in inputs.values()], grad.double())
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("dv", [8, 200], ids=["tiled", "whole"])
def test_a_block_of_keys_of_score_minus_infinity(dv: int) -> None:
    """The first 64 keys have no weight at all: the sums must begin with those behind them."""
    q, k, v = draw(1, 20, 1, seed=1).abs(), draw(1, 130, 1, seed=2), draw(1, 130, dv, seed=3)
    k[:, :64] = -float("inf")
    y = functional.nonlocal_attention(q, k, v)
    torch.testing.assert_close(y.double(), attend_explicit(q.double(), k.double(), v.double()), atol=1e-5, rtol=1e-5)
    k[:] = -float("inf")
    assert functional.nonlocal_attention(q, k, v).isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(16, 9, 8), (64, 5, 5)], ids=["tiled", "whole"])
def test_the_keys_bias_changes_nothing(size: tuple[int, int, int], layout: str) -> None:
    """It shifts whole rows of scores: not a bit is other, and the gradient is there, and zero."""
    block = triton_attn.NonLocalBlock(size[0])
    x, grad = (lay_out(draw(2, *size, seed=i), layout) for i in range(2))
    y, grads = run(block, [x], grad)
    with torch.no_grad():
        block.key_conv.bias += 1e4
    again, grads_again = run(block, [x], grad)
    assert all(torch.equal(a, b) for a, b in zip([y, *grads], [again, *grads_again], strict=True))
    (found,) = torch.autograd.grad(block(x), block.key_conv.bias, grad)
    assert torch.equal(found, torch.zeros_like(block.key_conv.bias))


@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("size", [(16, 9, 8), (64, 5, 5)], ids=["tiled", "whole"])
def test_the_values_bias_alone(size: tuple[int, int, int], with_shortcut: bool) -> None:
    """Its gradient is that of the output, summed, whatever the attention is."""
    block = triton_attn.NonLocalBlock(size[0]).requires_grad_(False)
    block.value_conv.bias.requires_grad_()
    x, shortcut, grad = (draw(2, *size, seed=i) for i in range(3))
    y = block(100 * x, shortcut if with_shortcut else None)
    (found,) = torch.autograd.grad(y, block.value_conv.bias, grad)
    right = (grad * (y > 0) if with_shortcut else grad).double().sum((0, 2, 3))
    torch.testing.assert_close(found.double(), right, atol=1e-5, rtol=0.0)


LARGE = pytest.mark.parametrize("size", [1, 3, 10, 30, 100])


def assert_mostly_within(draws: list[list[tuple[Tensor, Tensor, Tensor]]], names: list[str]) -> None:
    """The rule by norms, for the median draw: where two close scores decide all, an error is luck."""
    for name, *of_draws in zip(names, *draws, strict=True):
        shares = []
        for ours, plain, exact in of_draws:
            error, plain_error = ((t.double() - exact).norm() for t in (ours, plain))
            shares.append((error / (2 * plain_error + torch.finfo(torch.float32).eps * exact.norm())).item())
        assert sorted(shares)[len(shares) // 2] <= 1.0, f"{name}: {shares} of the bound"


@LARGE
@pytest.mark.parametrize("shape", [(16, 7, 10), (64, 5, 5)], ids=["tiled", "whole"])
def test_large_scores(shape: tuple[int, int, int], size: float) -> None:
    """Maps of up to 100: scores of up to ±2·10⁴, whose last bit is a thousandth of a softmax."""
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        fast, exact = twins(build(shape[0]), torch.float32)
        x, grad = size * torch.randn(1, *shape), torch.randn(1, *shape)
        x, grad = (lay_out(t, LAYOUTS[seed % 2]) for t in (x, grad))
        with triton_attn.use_backend("reference"):
            plain_y, plain = run(fast, [x], grad)
        right_y, right = run(exact, [x.double()], grad.double())
        y, grads = run(fast, [x], grad)
        found.append(list(zip([y, *grads], [plain_y, *plain], [right_y, *right], strict=True)))
    assert_mostly_within(found, ["y", "x", *dict(fast.named_parameters())])


@LARGE
@pytest.mark.parametrize("widths", [(8, 16), (70, 40), (16, 200)], ids=["tiled", "in chunks", "whole"])
def test_large_scores_of_the_function(widths: tuple[int, int], size: float) -> None:
    (d, dv), found = widths, []
    for seed in range(0, 20, 4):
        sizes = ((40, d), (70, d), (70, dv), (40, dv))
        q, k, v, grad = (draw(1, *each, seed=seed + i) for i, each in enumerate(sizes))
        inputs = [size * d**-0.25 * q, size * d**-0.25 * k, v]
        ours = with_gradients(functional.nonlocal_attention, inputs, grad)
        plain = with_gradients(attend_explicit, inputs, grad)
        exact = with_gradients(attend_explicit, [t.double() for t in inputs], grad.double())
        found.append(list(zip(ours, plain, exact, strict=True)))
    assert_mostly_within(found, ["y", "q", "k", "v"])


def test_the_rule_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward without delta does not pass, nor one whose norms are off, in any dtype."""
    right = non_local_tiled.products_bwd

    def without_delta(given: Any, room: Any, grad: Any, norms: Any, delta: Any, scale: float) -> None:
        right(given, room, grad, norms, torch.zeros_like(delta), scale)

    def off(given: Any, room: Any, grad: Any, norms: Any, delta: Any, scale: float) -> None:
        right(given, room, grad, norms + 0.125, delta, scale)

    for wrong in (without_delta, off):
        monkeypatch.setattr(non_local_tiled, "products_bwd", wrong)
        for dtype in DTYPES:
            with pytest.raises(AssertionError, match="over the bound"):
                check_attention(64, 64, 16, 16, dtype)
