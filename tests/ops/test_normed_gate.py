"""Channel gates with a batch norm in front, under the interpreter, against the composition in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from tests.parity import assert_within, away_from_the_kink, largest_error, lay_out
from triton_attn import functional
from triton_attn.functional import BatchNorm

pytestmark = pytest.mark.interpreter
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One call; every choice of the op's, both ways, is in some case below."""

    kind: str = "se"
    dtype: torch.dtype = F32
    layout: str = "contiguous"
    training: bool = True
    activation: str = "none"
    tail: bool = True
    affine: bool = True
    running: bool = True
    shape: tuple[int, int, int, int] = (3, 20, 7, 11)

    def __str__(self) -> str:
        return "-".join(str(each) for each in (self.kind, self.dtype, self.layout, self.training, self.activation))


# Layouts, activations and tails do not meet one another in the kernels: each is there with both of its neighbours.
CASES = [
    Case(),
    Case(layout="channels_last", tail=False, affine=False, running=False),
    Case(kind="eca", layout="batch slice", shape=(2, 6, 24, 25)),  # two spans of positions
    Case(kind="eca", layout="channel slice", dtype=F16, training=False),
    Case(dtype=BF16, layout="channels_last", shape=(18, 9, 3, 3)),  # more images than a block of them
    Case(dtype=F16, layout="transposed", tail=False),
    Case(activation="silu", layout="channels_last", shape=(2, 6, 24, 25)),
    Case(kind="eca", activation="hardswish", tail=False, dtype=BF16),
    Case(activation="relu", training=False, layout="channels_last", affine=False),
    Case(training=False, layout="channels_last", tail=False),
]


def draw(case: Case, seed: int) -> tuple[dict[str, Tensor | None], Tensor]:
    """Tensors by name, rounded to the case's dtype, and y's gradient."""
    torch.manual_seed(seed)
    channels = case.shape[1]
    maps = [lay_out((2 * torch.randn(case.shape) + 3).to(case.dtype), case.layout) for _ in range(3)]
    sizes = {"weight1": (5, channels), "bias1": (5,), "weight2": (channels, 5), "bias2": (channels,)}
    given: dict[str, Tensor | None] = {"x": maps[0], "shortcut": maps[1] if case.tail else None}
    given |= {name: torch.randn(channels) if case.affine else None for name in ("weight", "bias")}
    given |= {"running_mean": torch.randn(channels) + 3, "running_var": torch.rand(channels) + 0.5}
    given |= {name: torch.randn(size) / 3 for name, size in sizes.items()} if case.kind == "se" else {}
    given |= {"taps": torch.randn(3)} if case.kind == "eca" else {}
    return {name: None if t is None else t.to(case.dtype) for name, t in given.items()}, maps[2] - 3


def call(case: Case, given: dict[str, Any]) -> Tensor:
    running = (given["running_mean"], given["running_var"]) if case.running else (None, None)
    norm = BatchNorm(given["weight"], given["bias"], *running, training=case.training, activation=case.activation)
    if case.kind == "eca":
        return functional.eca(given["x"], given["taps"], given["shortcut"], norm=norm)
    weights = (given[name] for name in ("weight1", "bias1", "weight2", "bias2"))
    return functional.channel_gate(given["x"], *weights, given["shortcut"], norm=norm)


def run(case: Case, given: dict[str, Any], grad: Tensor, backend: Any, dtype: torch.dtype) -> list[Tensor]:
    """y, the running statistics, and all gradients."""
    given = {name: None if t is None else t.detach().to(dtype) for name, t in given.items()}
    running = [given["running_mean"].clone(), given["running_var"].clone()]
    given |= {"running_mean": running[0], "running_var": running[1]}
    leaves = [t.requires_grad_() for name, t in given.items() if t is not None and not name.startswith("running")]
    with triton_attn.use_backend(backend):
        y = call(case, given)
    return [y.detach(), *running, *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    errors, found = [], []
    for seed in range(7, -1, -1):
        given, grad = draw(case, seed)
        if case.tail:
            with torch.no_grad():
                wide = {name: None if t is None else t.double() for name, t in given.items()}
                before = call(case, wide | {"shortcut": None}) + given["shortcut"].double()
            grad = away_from_the_kink(grad, before)
        exact = run(case, given, grad, "reference", torch.float64)
        plain = run(case, given, grad, "reference", case.dtype)
        errors.append([largest_error(a, b) for a, b in zip(plain, exact, strict=True)])
        found = [given, grad, plain, exact]
    given, grad, plain, exact = found
    ours = run(case, given, grad, "triton", case.dtype)
    assert ours[0].stride() == (plain[0] if case.layout == "contiguous" else ours[0]).stride()
    for i, (a, b, right) in enumerate(zip(ours, plain, exact, strict=True)):
        # How far plain PyTorch is off on a vector is luck: its error on several draws, and a rounding, count.
        error = max(*(each[i] for each in errors), torch.finfo(case.dtype).eps * right.abs().max().item())
        assert_within(a, b, right, f"result {i}", plain_error=error)


def test_statistics_far_from_zero() -> None:
    """A mean a thousand times the deviation: a difference of sums of squares would leave no digit of the variance."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 8, 20, 30) + 1000.0, torch.randn(3)
    norm, plain = nn.BatchNorm2d(8), nn.BatchNorm2d(8).double()
    given = norm.running_mean, norm.running_var
    y = functional.eca(x, weight, norm=BatchNorm(norm.weight, norm.bias, *given, training=True))
    right = functional.eca(plain(x.double()), weight.double())
    torch.testing.assert_close(norm.running_mean.double(), plain.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.running_var.double(), plain.running_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(y.double(), right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        (Case(layout="channels_last", shape=(2, 32, 16, 16)), 4, 6),
        (Case(kind="eca", tail=False, shape=(2, 32, 16, 16)), 3, 5),
        (Case(kind="eca", training=False, shape=(2, 32, 16, 16)), 4, 5),
        (Case(training=False, tail=False, activation="silu", shape=(2, 32, 16, 16)), 3, 5),
    ],
    ids=str,
)
def test_how_often_the_map_moves(case: Case, forward: int, backward: int) -> None:
    from benchmarks.counted.meter import count_kernels

    given, grad = draw(case, 0)
    leaves = [t.requires_grad_() for name, t in given.items() if t is not None and not name.startswith("running")]
    with count_kernels() as before:
        y = call(case, given)
    with count_kernels() as after:
        torch.autograd.grad(y, leaves, grad)
    size = grad.numel() * grad.itemsize
    assert before.moved["map"] == forward * size
    assert after.moved["map"] == backward * size


@pytest.mark.parametrize(
    "case", [Case(shape=(2, 5, 3, 4)), Case(kind="eca", training=False, activation="silu", shape=(2, 5, 3, 4))], ids=str
)
def test_second_derivatives(case: Case) -> None:
    """A gradient penalty's gradient."""
    given, _ = draw(case, 0)

    def penalty(dtype: torch.dtype, backend: Any) -> list[Tensor]:
        own = {name: None if t is None else t.detach().to(dtype) for name, t in given.items()}
        leaves = [t.requires_grad_() for name, t in own.items() if t is not None and not name.startswith("running")]
        with triton_attn.use_backend(backend):
            y = call(case, own)
        first = torch.autograd.grad(y.square().mean(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(each.square().sum() for each in first), leaves))

    for a, b in zip(penalty(F32, "triton"), penalty(torch.float64, "reference"), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5 * b.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize(
    ("what", "case"),
    [
        ("x", Case()),
        ("shortcut", Case(training=False)),
        ("weight", Case(training=False)),
        ("weight", Case(kind="eca", activation="relu")),
        ("gate", Case(kind="eca", activation="relu")),
        ("gate", Case(training=False)),
    ],
    ids=str,
)
def test_gradients_of_a_part_of_the_inputs(what: str, case: Case) -> None:
    given, grad = draw(case, 0)
    names = [name for name, t in given.items() if t is not None and not name.startswith("running")]
    whole = dict(zip(names, run(case, given, grad, "triton", F32)[3:], strict=True))
    name = ("weight1" if case.kind == "se" else "taps") if what == "gate" else what
    given = {key: None if t is None else t.clone().requires_grad_(key == name) for key, t in given.items()}
    assert torch.equal(torch.autograd.grad(call(case, given), given[name], grad)[0], whole[name])


def test_without_a_gradient_statistics_are_taken_all_the_same() -> None:
    given, _ = draw(Case(), 0)
    right = run(Case(), given, torch.zeros(Case().shape), "reference", F32)
    with torch.no_grad():
        y = call(Case(), given)
    for a, b in zip((y, given["running_mean"], given["running_var"]), right, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_other_pools_and_single_values_go_the_plain_way() -> None:
    x, weight = torch.randn(2, 6, 3, 3), torch.randn(6, 6)
    norm = BatchNorm(training=True)
    y = functional.channel_gate(x, weight, None, None, None, pool="max", norm=norm)
    with triton_attn.use_backend("reference"):
        right = functional.channel_gate(x, weight, None, None, None, pool="max", norm=norm)
    torch.testing.assert_close(y, right)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        functional.eca(x[:1, :, :1, :1], torch.randn(3), norm=norm)
    assert functional.eca(x[:0], torch.randn(3), norm=norm).shape == (0, 6, 3, 3)


@pytest.mark.parametrize(
    ("norm", "error", "words"),
    [
        (nn.BatchNorm2d(6), TypeError, "norm must be a functional.BatchNorm, got BatchNorm2d"),
        (BatchNorm(), ValueError, "running statistics outside of training"),
        (BatchNorm(running_mean=torch.zeros(6)), ValueError, "given together"),
        (BatchNorm(torch.ones(5), training=True), ValueError, r"norm.weight must be \(6,\), got \(5,\)"),
        (BatchNorm(torch.ones(6).long(), training=True), TypeError, "floating-point tensor, got torch.int64"),
        (BatchNorm(training=True, activation="tanh"), ValueError, "norm.activation must be one of"),
    ],
)
def test_bad_input(norm: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        functional.eca(torch.randn(2, 6, 3, 3), torch.randn(3), norm=norm)
