"""Non-local attention under the interpreter, against the reference in float64."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import triton_attn
from tests.parity import DTYPES, assert_within, check_block, largest_error, lay_out, run, twins
from triton_attn import functional, reference
from triton_attn.ops import non_local_tiled
from triton_attn.reference.non_local import attend_explicit, nonlocal_attention
from triton_attn.tuning import attention_rules, chips

pytestmark = [
    pytest.mark.interpreter,
    # NumPy's, where infinities meet in the interpreter, as they are meant to.
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|All-NaN slice) encountered:RuntimeWarning"),
]

LAYOUTS = ("contiguous", "channels_last")


def build(channels: int) -> Any:
    """What makes a block, for the parity checks."""
    return lambda package: package.NonLocalBlock(channels)


# (C, H, W): both ways, one and several blocks of queries and of keys, widths and sizes that are no power of two.
MAPS = [(2, 1, 1), (16, 1, 1), (128, 3, 3), (16, 7, 1), (64, 7, 7), (96, 8, 8), (2, 5, 13), (128, 14, 14), (16, 15, 20)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [*((size, torch.float32) for size in MAPS), *((size, dtype) for size in MAPS[2::2] for dtype in DTYPES[1:])],
    ids=str,
)
def test_block_parity(size: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
    with_shortcut = (size[0] > 2) == (layout == "contiguous")
    check_block(build(size[0]), (2, *size), dtype, layout, with_shortcut=with_shortcut)


@pytest.mark.parametrize("layout", ["batch slice", "channel slice", "transposed"])
def test_other_strides(layout: str) -> None:
    check_block(build(24), (2, 24, 5, 4), torch.float32, layout, with_shortcut=True)


@pytest.mark.parametrize(("shape", "count"), [((2, 16, 5, 5), 1), ((1, 64, 2, 2), 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_projections_are_one_product_where_the_map_is_larger(shape: tuple[int, ...], count: int, layout: str) -> None:
    block, x = triton_attn.NonLocalBlock(shape[1]), lay_out(torch.randn(shape), layout)
    projected = importlib.import_module("triton_attn.ops.non_local_block").projected
    projections = [t for t in projected(x, block.weights(), layout == "channels_last") if t is not None]
    assert len(projections) == count
    with torch.no_grad():  # k and v come without their biases
        block.key_conv.bias.zero_()
        block.value_conv.bias.zero_()
    torch.testing.assert_close(torch.cat(projections, 2), torch.cat(block.project(x), 2))
    # Neither they nor the map are copied on their way into the kernels.
    assert all((t.stride(2) == 1) == (layout == "channels_last") for t in projections)
    if layout == "channels_last":
        assert x.flatten(2).transpose(1, 2).is_contiguous()


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def with_gradients(attend: Any, inputs: list[Tensor], grad: Tensor, **arguments: Any) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = attend(*leaves, **arguments)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def check_attention(
    length: int, source: int, d: int, dv: int, dtype: torch.dtype, transposed: bool = False, scale: float = 1.0
) -> None:
    """Hold the function to the rule; plain PyTorch's error is the largest of several draws."""
    drawn = []
    for seed in range(0, 12, 4):
        sizes = ((length, d), (source, d), (source, dv), (length, dv))
        q, k, v, grad = (
            draw(2, *(size[::-1] if transposed else size), dtype=dtype, seed=seed + i, scale=d**-0.25 if i < 2 else 1)
            for i, size in enumerate(sizes)
        )
        if transposed:
            q, k, v, grad = (t.transpose(1, 2) for t in (q, k, v, grad))
        plain = with_gradients(nonlocal_attention, [q, k, v], grad, scale=scale)
        exact = with_gradients(attend_explicit, [t.double() for t in (q, k, v)], grad.double(), scale=scale)
        drawn.append(((q, k, v, grad), plain, exact))
    (q, k, v, grad), plain, exact = drawn[0]
    with triton_attn.use_backend("triton"):
        ours = with_gradients(functional.nonlocal_attention, [q, k, v], grad, scale=scale)
    for i, name in enumerate(("y", "q", "k", "v")):
        plain_error = max(largest_error(each[1][i], each[2][i]) for each in drawn)
        assert_within(ours[i], plain[i], exact[i], name, plain_error=plain_error)


# (L, S, d, dv): every width and size is covered, in pairs of unequal ones.
SHAPES = [
    (1, 1, 1, 1),
    (7, 7, 8, 1),
    (49, 49, 1, 32),
    (64, 65, 32, 48),
    (65, 64, 48, 64),
    (196, 196, 64, 128),
    (300, 300, 32, 64),
    (7, 300, 128, 8),
    (300, 7, 8, 256),
    (49, 196, 256, 48),
    (65, 49, 64, 256),
    (33, 70, 300, 600),
]


@pytest.mark.parametrize(
    ("dtype", "transposed"), [(torch.float32, False), (torch.float32, True), (torch.float16, True)], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_parity(shape: tuple[int, int, int, int], dtype: torch.dtype, transposed: bool) -> None:
    check_attention(*shape, dtype, transposed)


@pytest.mark.parametrize(("transposed", "scale"), [(False, 1.0), (True, -0.5)])
def test_longer_rows_by_the_library(transposed: bool, scale: float) -> None:
    assert attention_rules.by_library(64, 200, 70, 270, 2)
    check_attention(70, 270, 64, 200, torch.float16, transposed, scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_block_of_longer_rows(layout: str, dtype: torch.dtype) -> None:
    check_block(build(172), (2, 172, 13, 20), dtype, layout, with_shortcut=layout == "contiguous")


@pytest.mark.parametrize("scale", [0.125, -2.0, 0.0])
@pytest.mark.parametrize("shape", [(20, 30, 16, 8), (20, 30, 16, 128)], ids=["tiled", "whole"])
def test_scale(shape: tuple[int, int, int, int], scale: float) -> None:
    assert attention_rules.keeps_rows(shape[2], shape[3], *shape[:2]) == (shape[3] == 128)
    check_attention(*shape, torch.float32, scale=scale)


@pytest.mark.parametrize("chip", [chips.Chip(64 * 1024, amd=True), chips.Chip(227 * 1024)], ids=str)
@pytest.mark.parametrize("shape", [(70, 70, 160, 96), (40, 100, 40, 600), (300, 30, 600, 40)], ids=str)
def test_tiles_of_other_chips(shape: tuple[int, int, int, int], chip: chips.Chip) -> None:
    with chips.assume(chip):
        check_attention(*shape, torch.float16)


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


# Inputs of every kind.


@pytest.mark.parametrize("dv", [8, 200], ids=["tiled", "whole"])
def test_only_what_is_asked_for_is_computed(dv: int) -> None:
    from benchmarks.counted.meter import count

    inputs = [draw(1, n, c, seed=i) for i, (n, c) in enumerate(((20, 8), (20, 8), (20, dv)))]
    exact = with_gradients(attend_explicit, inputs, torch.ones(1, 20, dv))
    tiled = {
        "q": {"non_local_rows_bwd_kernel", "non_local_queries_bwd_kernel"},
        "k": {"non_local_rows_bwd_kernel", "non_local_keys_bwd_kernel"},
        "v": {"non_local_rows_bwd_kernel", "non_local_keys_bwd_kernel"},
    }
    for i, name in enumerate(tiled):
        leaves = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs)]
        y = functional.nonlocal_attention(*leaves)
        with count() as traffic:
            y.sum().backward()
        whole = set() if name == "v" else {"softmax_bwd_kernel"}
        assert {kernel for kernel in traffic.launches if kernel.endswith("_kernel")} == (
            tiled[name] if dv == 8 else whole
        )
        assert [leaf.grad is not None for leaf in leaves] == [j == i for j in range(3)]
        torch.testing.assert_close(leaves[i].grad, exact[1 + i], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert functional.nonlocal_attention(*inputs).grad_fn is None


def test_empty_rows_and_autocast() -> None:
    assert functional.nonlocal_attention(*(torch.zeros(0, n, 4) for n in (3, 5, 5))).shape == (0, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.nonlocal_attention(*(draw(1, 9, 4, seed=i) for i in range(3))).dtype == torch.bfloat16


def test_the_shortcuts_gradient_alone() -> None:
    block = triton_attn.NonLocalBlock(8).requires_grad_(False)
    x, shortcut, grad = (draw(1, 8, 4, 5, seed=i) for i in range(3))
    shortcut.requires_grad_()
    y = block(x, shortcut)
    (found,) = torch.autograd.grad(y, shortcut, grad)
    assert torch.equal(found, grad * (y > 0))


# The other forms.


@pytest.mark.parametrize("shape", [(40, 40, 4, 6), (5, 7, 64, 64), (2000, 2000, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dot(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    length, source, d, dv = shape
    q, k, v, grad = (
        draw(2, n, c, dtype=dtype, seed=i)
        for i, (n, c) in enumerate(((length, d), (source, d), (source, dv), (length, dv)))
    )

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 0.5 * (q @ k.transpose(1, 2)) @ v / source

    ours = with_gradients(functional.nonlocal_attention, [q, k, v], grad, scale=0.5, mode="dot")
    exact = with_gradients(formula, [t.double() for t in (q, k, v)], grad.double())
    for a, b in zip(ours, exact, strict=True):
        tolerance = 2e-5 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_dot_sums_do_not_overflow() -> None:
    q, k, v = torch.full((1, 3, 2), 1 / 32), torch.full((1, 9000, 2), 30.0), torch.full((1, 9000, 2), 30.0)
    y = functional.nonlocal_attention(q.half(), k.half(), v.half(), mode="dot")  # Σ k v is 8.1 million
    assert (y == 2 * 30 * 30 / 32).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_return_attention(layout: str, with_shortcut: bool) -> None:
    block = triton_attn.NonLocalBlock(8)
    x = lay_out(draw(2, 8, 4, 5), layout)
    shortcut = draw(2, 8, 4, 5, seed=1) if with_shortcut else None
    y, matrix = block(x, shortcut, return_attention=True)
    assert torch.equal(y, block(x, shortcut))
    plain_y, plain_matrix = reference.NonLocalBlock.forward(block, x, shortcut, return_attention=True)
    with triton_attn.use_backend("reference"):
        torch.testing.assert_close(block(x, shortcut, return_attention=True)[0], plain_y)
    assert matrix.shape == (2, 20, 20)
    torch.testing.assert_close(matrix, plain_matrix, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(y, plain_y, atol=1e-5, rtol=1e-5)
    row = block.attention_from(x, [(1, 2)])
    torch.testing.assert_close(matrix[:, 7], row.flatten(1), atol=1e-6, rtol=1e-5)
    for name in ("triton", "reference"):
        with triton_attn.use_backend(name), pytest.raises(ValueError, match=r"up to 4096 of them; this 65×64 map"):
            block(torch.zeros(1, 8, 65, 64), return_attention=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, r"q must be a torch.Tensor .*got list"),
        ({"k": torch.randn(2, 4)}, ValueError, r"k must be 3-D, \(N, positions, channels\), got shape \(2, 4\)"),
        ({"v": torch.ones(2, 5, 6, dtype=torch.int32)}, TypeError, r"v must be float16.*got torch.int32"),
        ({"k": torch.randn(2, 5, 4).half()}, TypeError, r"k is torch.float16, but q is torch.float32"),
        ({"v": torch.randn(2, 5, 6, device="meta")}, ValueError, r"v is on meta, but q is on cpu"),
        ({"k": torch.randn(1, 5, 4)}, ValueError, r"k must have q's batch of 2"),
        ({"k": torch.randn(2, 5, 3)}, ValueError, r"k must have q's 4 channels, got shape \(2, 5, 3\)"),
        ({"v": torch.randn(2, 4, 6)}, ValueError, r"v must have k's 5 positions"),
        ({"v": torch.randn(2, 5, 0)}, ValueError, r"v must have at least 1 channel"),
        ({"k": torch.randn(2, 0, 4), "v": torch.randn(2, 0, 6)}, ValueError, r"at least 1 position"),
        ({"scale": float("inf")}, ValueError, r"scale must be a finite number, got inf"),
        ({"mode": "gaussian"}, ValueError, r"mode must be one of 'softmax', 'dot', got 'gaussian'"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "triton", "reference"])
def test_errors_name_the_argument(changes: dict, error: type[Exception], message: str, name: str) -> None:
    arguments = {"q": torch.randn(2, 3, 4), "k": torch.randn(2, 5, 4), "v": torch.randn(2, 5, 6)}
    with triton_attn.use_backend(name), pytest.raises(error, match=message):
        functional.nonlocal_attention(**{**arguments, **changes})


# PyTorch around the op.


# Memory and traffic.


class Allocations(TorchDispatchMode):
    """What every operator allocates, also within our ops, on the meta device; their kernels are not started."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from triton_attn.ops.library import IMPLEMENTATIONS

        if func in IMPLEMENTATIONS:
            with self:
                return IMPLEMENTATIONS[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given:
                self.largest = max(self.largest, t.numel())
                self.total += t.numel() * t.itemsize
        return result


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_attn import backend
    from triton_attn.ops import launch

    monkeypatch.setattr(launch, "start", lambda *_, **__: None)
    monkeypatch.setattr(backend, "_obstacle", lambda *_: None)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "side"), [(64, 33), (512, 40), (2048, 33), (64, 112)])
def test_no_matrix_is_ever_allocated(channels: int, side: int, layout: str) -> None:
    """Above 1024 positions: nothing is larger than the projections together, or the weights."""
    block = triton_attn.NonLocalBlock(channels, device="meta")
    x, shortcut = (
        lay_out(torch.empty(1, channels, side, side, device="meta"), layout).requires_grad_() for _ in range(2)
    )
    with Allocations() as seen:
        block(x, shortcut).sum().backward()
    # The projections together, or their weights: as many as the three have, or the values' alone.
    together = 2 * channels**2 <= 2 * channels * side**2
    assert seen.largest == (2 * channels * max(side**2, channels) if together else channels * channels)
    if channels == 64:
        assert seen.largest < side**4
    # The meter does see the matrix where there is one.
    with Allocations() as seen:
        block.forward_explicit(x, shortcut).sum().backward()
    assert seen.largest >= side**4


@pytest.mark.usefixtures("nothing_starts")
def test_a_large_image_takes_little_more_memory_than_without_attention() -> None:
    """ResNet-50 at 1024², non-local at the stem: bytes saved for the backward, and bytes allocated in all."""

    def memory(attention: str | None) -> tuple[int, int]:
        model = triton_attn.resnet50(attention, where="stem", num_classes=10).to("meta")
        images = torch.empty(1, 3, 1024, 1024, device="meta").contiguous(memory_format=torch.channels_last)
        saved: dict[int, Tensor] = {}

        def keep(t: Tensor) -> Tensor:
            saved[t.untyped_storage()._cdata] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), Allocations() as seen:
            loss = model(images).sum()
        kept = sum(t.untyped_storage().nbytes() for t in saved.values())
        with seen:
            loss.backward()
        return kept, seen.total

    plain, ours = memory(None), memory("nonlocal")
    print("bytes saved and allocated, plain and with non-local:", plain, ours)
    assert plain[0] > 0
    assert ours[0] < 1.2 * plain[0]
    assert ours[1] < 1.2 * plain[1]


def test_traffic_grows_with_the_positions_at_a_fixed_number_of_tiles() -> None:
    """What a block of queries reads and writes, forward and backward, is linear in the keys: nothing of (HW)² moves."""
    from benchmarks.counted.meter import count

    def moved(positions: int) -> list[int]:
        """Forward and backward, with as many queries whatever the keys."""
        inputs = [
            draw(1, n, 16, dtype=torch.float16, seed=i).requires_grad_()
            for i, n in enumerate((64, positions, positions))
        ]
        found = []
        with count() as traffic:
            y = functional.nonlocal_attention(*inputs)
        found.append(traffic.total)
        with count() as traffic:
            y.sum().backward()
        return [*found, traffic.total]

    small, middle, large = (moved(positions) for positions in (384, 768, 1536))
    for a, b, c in zip(small, middle, large, strict=True):
        assert c - b == pytest.approx(2 * (b - a), rel=0.02)
