"""CBAM by networks with a batch norm in front, under the interpreter, against the composition in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_cbam_by import Networks, clear, plain
from tests.parity import assert_within, away_from_the_kink, largest_error, lay_out
from triton_attn.ops import normed_cbam
from triton_attn.ops.cbam_by import MULTIPLY, MULTIPLY_BWD, POOL_CHANNELS, POOL_CHANNELS_BWD, cbam_by
from triton_attn.reference.batch_norm import BatchNorm, batch_norm

pytestmark = pytest.mark.interpreter
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CONSTANTS = True, 1e-5


@dataclass(frozen=True)
class Case:
    """One call; every choice, both ways, is in some case below."""

    dtype: torch.dtype = F32
    layout: str = "contiguous"
    training: bool = True
    tail: bool = True
    affine: bool = True
    tied: bool = False
    shape: tuple[int, int, int, int] = (2, 6, 5, 7)

    def __str__(self) -> str:
        return "-".join(str(each) for each in (self.dtype, self.layout, self.training, self.tied, self.shape))


CASES = [
    Case(dtype=F16, layout="transposed"),
    Case(dtype=BF16, layout="channels_last", shape=(2, 40, 7, 7)),
    Case(tail=False, affine=False, shape=(1, 3, 24, 25)),  # two splits of positions
    Case(layout="channels_last", tail=False, tied=True, shape=(1, 70, 9, 13)),
    Case(tied=True, shape=(1, 12, 9, 13)),
    Case(layout="channels_last", training=False, affine=False, tied=True),
    Case(training=False, tail=False, layout="channel slice"),
]


def draw(case: Case, seed: int = 0) -> tuple[dict[str, Tensor | None], Networks, Tensor]:
    """Tensors by name, rounded to the case's dtype, networks, and y's gradient.

    Behind the norm no rounding decides which channel is a position's largest: the map is the inverse of a clear one.
    The weights are of both signs, and one is 0.
    """
    torch.manual_seed(seed)
    channels = case.shape[1]
    wanted, shortcut, grad = clear(case.shape), torch.randn(case.shape), torch.randn(case.shape)
    wanted = wanted.round() if case.tied else wanted
    weight, bias = (torch.randn(channels) for _ in range(2)) if case.affine else (None, None)
    x, mean, variance = wanted, torch.zeros(channels), torch.ones(channels)
    if weight is not None and bias is not None:
        weight = weight.sign() * (0.5 + weight.abs())
        x, bias = wanted / weight[:, None, None], torch.zeros(channels)
        if case.training:  # as the batch has it
            weight, bias = weight * x.std((0, 2, 3), correction=0), wanted.mean((0, 2, 3))
        weight[0] = 0.0
    given = {"x": x, "shortcut": shortcut if case.tail else None, "weight": weight, "bias": bias}
    given |= {"running_mean": mean, "running_var": variance}
    laid = {name: None if t is None else t.to(case.dtype) for name, t in given.items()}
    laid = {name: t if t is None or t.dim() == 1 else lay_out(t, case.layout) for name, t in laid.items()}
    return laid, Networks(channels).to(case.dtype), lay_out(grad.to(case.dtype), case.layout)


def call(case: Case, given: dict[str, Any], networks: Networks, *, fast: bool) -> Tensor:
    x, shortcut, weight, bias, *running = given.values()
    norm = BatchNorm(weight, bias, *running, training=case.training)
    if fast:
        return cbam_by(x, networks.channels, networks.positions, shortcut, norm)
    return plain(batch_norm(x, norm), networks, shortcut)


def wide(given: dict[str, Any], networks: Networks) -> tuple[dict[str, Any], Networks]:
    """The same in float64."""
    exact = Networks(given["x"].shape[1]).double()
    exact.load_state_dict(networks.state_dict())
    return {name: None if t is None else t.double() for name, t in given.items()}, exact


def run(case: Case, given: dict[str, Any], networks: Networks, grad: Tensor, *, fast: bool = False) -> list[Tensor]:
    """y, the running statistics, and all gradients."""
    given = {name: t if t is None else t.detach().clone() if t.dim() == 1 else t.detach() for name, t in given.items()}
    leaves = [t.requires_grad_() for name, t in given.items() if t is not None and not name.startswith("running")]
    y = call(case, given, networks, fast=fast)
    running = [given["running_mean"], given["running_var"]]
    return [y.detach(), *running, *torch.autograd.grad(y, [*leaves, *networks.parameters()], grad.to(y.dtype))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    found = []
    for seed in range(4):
        given, networks, grad = draw(case, seed)
        exact, twin = wide(given, networks)
        if case.tail:
            with torch.no_grad():
                before = call(case, exact | {"shortcut": None}, twin, fast=False) + exact["shortcut"]
            grad, (exact, _) = away_from_the_kink(grad, before), wide(given, networks)
        right, theirs = run(case, exact, twin, grad.double()), run(case, given, networks, grad)
        found.append((given, networks, grad, theirs, right))
    given, networks, grad, theirs, right = found[0]
    ours = run(case, given, networks, grad, fast=True)
    assert ours[0].stride() == (theirs[0] if case.layout == "contiguous" else ours[0]).stride()
    for i, (a, b, c) in enumerate(zip(ours, theirs, right, strict=True)):
        error = max(largest_error(each[3][i], each[4][i]) for each in found)
        assert_within(
            a, b, c, f"result {i}", plain_error=max(error, torch.finfo(case.dtype).eps * c.abs().max().item())
        )


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        (Case(layout="channels_last", shape=(1, 64, 24, 24)), 5, 7),
        (Case(tail=False, shape=(1, 64, 24, 24)), 4, 6),
        (Case(training=False, shape=(1, 64, 24, 24)), 5, 6),
    ],
    ids=str,
)
def test_how_often_the_map_moves(case: Case, forward: int, backward: int) -> None:
    """Beside it planes of a value a position: the gate and its gradient, what is pooled and the gradients of that."""
    from benchmarks.counted.meter import count_kernels

    given, networks, grad = draw(case)
    leaves = [t.requires_grad_() for name, t in given.items() if t is not None and not name.startswith("running")]
    with count_kernels() as before:
        y = call(case, given, networks, fast=True)
    with count_kernels() as after:
        torch.autograd.grad(y, leaves, grad)
    size, plane = grad.numel() * grad.itemsize, grad.numel() // 64 * 4
    assert forward * size <= before.moved["map"] <= forward * size + plane
    assert backward * size <= after.moved["map"] <= backward * size + 8 * plane
    assert sum(before.launches.values()) == 5
    assert sum(after.launches.values()) == 6


@pytest.mark.parametrize("case", [Case(), Case(layout="channels_last", training=False, tail=False)], ids=str)
def test_second_derivatives_and_a_backward_twice(case: Case) -> None:
    """A gradient penalty's gradient; and twice the same bits."""
    given, networks, grad = draw(case)
    found, names = [], ("x", "weight", "bias")
    for fast in (True, False):
        own = {name: None if t is None else t.detach().clone() for name, t in given.items()}
        leaves = [*(own[name].requires_grad_() for name in names), *networks.parameters()]
        y = call(case, own, networks, fast=fast)
        first = torch.autograd.grad(y, leaves, grad, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves, retain_graph=True)
        found.append([*first, *second, *torch.autograd.grad(y, leaves, grad)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item(), rtol=1e-4)
    y = call(case, given, networks, fast=True)
    once, twice = (torch.autograd.grad(y, networks.weight, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "shortcut", "networks", "none"])
def test_only_some_gradients(wanted: str, training: bool) -> None:
    case = Case(training=training)
    given, networks, grad = draw(case)
    names = [name for name in given if not name.startswith("running")]
    whole = dict(zip([*names, "networks"], run(case, given, networks, grad, fast=True)[3:-1], strict=True))
    networks.requires_grad_(wanted == "networks")
    given = {name: t.clone().requires_grad_(name == wanted) for name, t in given.items()}
    y = call(case, given, networks, fast=True)
    assert y.requires_grad == (wanted != "none")
    if y.requires_grad:
        leaf = networks.weight if wanted == "networks" else given[wanted]
        assert torch.equal(torch.autograd.grad(y, leaf, grad)[0], whole[wanted])


@pytest.mark.parametrize("which", ["channels", "positions", "both"])
def test_networks_that_look_at_nothing(which: str) -> None:
    case = Case()
    given, networks, grad = draw(case)
    constant, map_ = torch.rand(2, 6, 1, 1), torch.rand(2, 1, 5, 7)
    if which != "positions":
        networks.channels = lambda *_: constant
    if which != "channels":
        networks.positions = lambda *_: map_
    leaves = [given[name].requires_grad_() for name in ("x", "shortcut", "weight", "bias")]
    found = []
    for fast in (True, False):
        y = call(case, given, networks, fast=fast)
        found.append([y, *torch.autograd.grad(y, leaves, grad)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    # Blocks go by the map's size, which is a number: what traces symbols has the formula. And what is not written of
    # the sums differs from run to run.
    static, basic = ("test_schema", "test_autograd_registration", "test_faketensor"), ("test_schema", "test_faketensor")
    given, _, grad = draw(Case(layout=layout))
    x, shortcut, weight, bias, *_ = given.values()
    tensors, gate, of_positions = (weight, bias, None, None), torch.rand(2, 6), torch.rand(2, 1, 5, 7)
    for saves in (True, False):
        torch.library.opcheck(normed_cbam.POOL.registered, (x, *tensors, *CONSTANTS, saves), test_utils=static)
    mean, peak, *maxima, batch_mean, variance = normed_cbam.POOL(x, *tensors, *CONSTANTS, True)
    norm = batch_mean, variance, weight, bias, *CONSTANTS, "none"
    torch.library.opcheck(POOL_CHANNELS.registered, (x, gate, *norm), test_utils=static)
    torch.library.opcheck(MULTIPLY.registered, (x, gate, of_positions, *norm, shortcut, True), test_utils=static)
    pooled = torch.rand(2, 2, 5, 7)
    given = grad, x, gate, of_positions, pooled, *norm, None
    torch.library.opcheck(MULTIPLY_BWD.registered, given, test_utils=basic)
    _, winners, _, *sums = MULTIPLY_BWD(*given)
    winner = winners.amin(1)
    torch.library.opcheck(POOL_CHANNELS_BWD.registered, (x, pooled, winner, *norm, *sums), test_utils=basic)
    arguments = gate, of_positions, pooled, winner, None, *sums, mean, peak, *maxima, *tensors, batch_mean, variance
    for needs in ((True, True), (False, False)):
        torch.library.opcheck(normed_cbam.BWD.registered, (grad, x, *arguments, *CONSTANTS, *needs), test_utils=static)
