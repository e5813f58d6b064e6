"""Non-local attention on a GPU, at ResNet-50's shapes."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from tests.gpu.blocks import DTYPES, LAYOUTS, SITES, maps, twins
from tests.parity import assert_within, largest_error, run
from triton_attn import functional
from triton_attn.reference.non_local import attend_explicit, nonlocal_attention

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", [10, 30, 100])
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("site", [(64, 40, 40), (256, 20, 20)], ids=str)
def test_large_scores(site: tuple[int, int, int], memory_format: torch.memory_format, size: float) -> None:
    """Scores of ±10⁴ and more: the rule by norms, for the median draw, since luck decides where two are close."""
    shares: list[list[float]] = []
    for seed in range(5):
        torch.manual_seed(seed)
        fast, exact = twins("nonlocal", site[0])
        x, grad = maps((1, *site), torch.float32, memory_format, 2)
        _, right = run(exact, [size * x.double()], grad.double())
        with triton_attn.use_backend("reference"):
            _, plain = run(fast, [size * x], grad)
        with triton_attn.use_backend("triton"):
            _, ours = run(fast, [size * x], grad)
        bounds = [2 * (a - b).norm() + torch.finfo(a.dtype).eps * b.norm() for a, b in zip(plain, right, strict=True)]
        errors = [(a - b).norm() for a, b in zip(ours, right, strict=True)]
        shares.append([(a / b).item() for a, b in zip(errors, bounds, strict=True)])
    for name, found in zip(["x", *dict(fast.named_parameters())], zip(*shares, strict=True), strict=True):
        assert sorted(found)[2] <= 1.0, f"{name}: {found} of the bound"


# (L, S, d, dv): widths and sizes that are no power of two, one and several slices, other keys than queries.
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (7, 300, 48, 8),
        (300, 300, 32, 16),
        (300, 300, 16, 64),
        (1000, 333, 32, 64),
        (333, 1000, 128, 256),
        (65, 64, 64, 600),
        (4096, 4096, 512, 1024),
        (1025, 1025, 1024, 2048),
    ],
    ids=str,
)
def test_attention_parity(shape: tuple[int, int, int, int], dtype: torch.dtype, transposed: bool) -> None:
    length, source, d, dv = shape
    errors, results = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        q, k, v, grad = (
            (torch.randn(2, *(size[::-1] if transposed else size), device="cuda") * scale).to(dtype)
            for size, scale in (
                ((length, d), d**-0.25),
                ((source, d), d**-0.25),
                ((source, dv), 1),
                ((length, dv), 1),
            )
        )
        if transposed:
            q, k, v, grad = (t.transpose(1, 2) for t in (q, k, v, grad))
        results = []
        for attend, cast in ((nonlocal_attention, dtype), (attend_explicit, torch.float64)):
            leaves = [t.detach().to(cast).requires_grad_() for t in (q, k, v)]
            y = attend(*leaves)
            results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(cast))])
        errors.append([largest_error(a, b) for a, b in zip(*results, strict=True)])
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    with triton_attn.use_backend("triton"):
        y = functional.nonlocal_attention(*leaves)
    ours = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    for i, name in enumerate(("y", "q", "k", "v")):
        assert_within(ours[i], results[0][i], results[1][i], name, plain_error=max(each[i] for each in errors))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("site", SITES, ids=str)
def test_an_image_does_not_depend_on_its_batch(site: tuple[int, int, int], dtype: torch.dtype) -> None:
    """The attention itself: the projections are the library's product, whose order may go by the batch."""
    torch.manual_seed(0)
    positions, c = site[1] * site[2], site[0]
    q, k, v = (torch.randn(5, positions, width, device="cuda").to(dtype) * 0.2 for width in (c // 2, c // 2, c))
    whole = functional.nonlocal_attention(q, k, v)
    for i in (0, 4):
        assert torch.equal(whole[i : i + 1], functional.nonlocal_attention(*(t[i : i + 1] for t in (q, k, v))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores_and_values_that_are_not_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 64, device="cuda").to(dtype) for n in (200, 300, 300))
    y = functional.nonlocal_attention(20 * q, 20 * k, v)
    exact = attend_explicit((20 * q).double(), (20 * k).double(), v.double())
    torch.testing.assert_close(y.double(), exact, atol=2e-2, rtol=2e-2)
    k[0, 7, 3] = float("inf")
    k[1, :100] = -float("inf")
    q[1] = q[1].abs()
    exact = attend_explicit(q.double(), k.double(), v.double())
    y = functional.nonlocal_attention(q, k, v)
    assert torch.equal(y.isnan(), exact.isnan())
    torch.testing.assert_close(y.double(), exact, atol=2e-2, rtol=2e-2, equal_nan=True)


@pytest.mark.parametrize("setting", ["highest", "high"])
def test_float32_products_follow_the_setting(setting: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 500, width, device="cuda") * 0.2 for width in (64, 64, 128))
    exact = attend_explicit(*(t.double() for t in (q, k, v)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        error = largest_error(functional.nonlocal_attention(q, k, v), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    assert error < (2e-6 if setting == "highest" else 2e-3)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_memory_is_linear(memory_format: torch.memory_format) -> None:
    """A training step of the block on 256 × 256 positions: the matrix would take 17 GB."""
    block = triton_attn.NonLocalBlock(64, device="cuda", dtype=torch.bfloat16)
    x, grad = maps((1, 64, 256, 256), torch.bfloat16, memory_format, 2)
    run(block, [x], grad)  # what libraries keep to work with is there from now on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(block, [x], grad)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 16 * x.nbytes
