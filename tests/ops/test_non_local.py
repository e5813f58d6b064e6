"""Non-local attention under the interpreter, against the reference in float64."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

import triton_attn
from tests.ops.attention import LAYOUTS, build, check_attention, draw, with_gradients
from tests.parity import DTYPES, check_block, lay_out
from triton_attn import functional, reference
from triton_attn.reference.non_local import attend_explicit
from triton_attn.tuning import attention_rules, chips

pytestmark = [
    pytest.mark.interpreter,
    # NumPy's, where infinities meet in the interpreter, as they are meant to.
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|All-NaN slice) encountered:RuntimeWarning"),
]


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
    *projections, together = projected(x, block.weights(), layout == "channels_last")
    assert (together is None) == (count > 1)
    projections = [t for t in projections if t is not None]
    assert len(projections) == count
    with torch.no_grad():  # k and v come without their biases
        block.key_conv.bias.zero_()
        block.value_conv.bias.zero_()
    torch.testing.assert_close(torch.cat(projections, 2), torch.cat(block.project(x), 2))
    # Neither they nor the map are copied on their way into the kernels.
    assert all((t.stride(2) == 1) == (layout == "channels_last") for t in projections)
    if layout == "channels_last":
        assert x.flatten(2).transpose(1, 2).is_contiguous()


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
