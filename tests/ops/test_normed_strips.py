"""Gates of rows and columns with a batch norm in front, under the interpreter, against the composition in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_strips import NETWORKS, Network
from tests.parity import assert_within, away_from_the_kink, largest_error, lay_out
from triton_attn.ops import normed_strips
from triton_attn.ops.strips import Layer, gate_rows_and_columns
from triton_attn.reference.batch_norm import BatchNorm, batch_norm

pytestmark = pytest.mark.interpreter
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One call; every choice, both ways, is in some case below."""

    kind: str = "anybody's"
    dtype: torch.dtype = F32
    layout: str = "contiguous"
    training: bool = True
    tail: bool = True
    affine: bool = True
    shape: tuple[int, int, int, int] = (2, 6, 5, 7)

    def __str__(self) -> str:
        return "-".join(str(each) for each in (self.kind, self.dtype, self.layout, self.training, self.shape))


CASES = [
    Case(dtype=F16, layout="transposed"),
    Case(kind="with its last layer", layout="channels_last", dtype=BF16, shape=(2, 40, 7, 7)),
    Case(tail=False, affine=False, shape=(1, 3, 5, 150)),  # rows of two parts
    Case(layout="channels_last", tail=False, shape=(2, 9, 70, 9)),  # columns of three, the last one smaller
    Case(layout="channels_last", shape=(1, 2, 70, 70)),  # parts of both
    Case(kind="with its last layer", layout="channels_last", training=False, affine=False),
    Case(training=False, tail=False, dtype=F16, layout="channel slice"),
]


def draw(case: Case, seed: int = 0) -> tuple[dict[str, Tensor | None], Any, Tensor]:
    """Tensors by name, rounded to the case's dtype, a network, and y's gradient."""
    torch.manual_seed(seed)
    channels = case.shape[1]
    maps = [lay_out((2 * torch.randn(case.shape) + 3).to(case.dtype), case.layout) for _ in range(3)]
    given: dict[str, Tensor | None] = {"x": maps[0], "shortcut": maps[1] if case.tail else None}
    given |= {name: torch.randn(channels) if case.affine else None for name in ("weight", "bias")}
    given |= {"running_mean": torch.randn(channels) + 3, "running_var": torch.rand(channels) + 0.5}
    network = NETWORKS[case.kind](channels).to(case.dtype)
    return {name: None if t is None else t.to(case.dtype) for name, t in given.items()}, network, maps[2] - 3


def call(case: Case, given: dict[str, Any], network: Any, *, fast: bool) -> Tensor:
    x, shortcut, weight, bias, *running = given.values()
    norm = BatchNorm(weight, bias, *running, training=case.training)
    if not fast:
        v = batch_norm(x, norm)
        rows, columns = network(v.mean(3, keepdim=True), v.mean(2, keepdim=True))
        y = v * rows * columns
        return y if shortcut is None else torch.relu(y + shortcut)
    if isinstance(network, Network):
        return gate_rows_and_columns(x, network, shortcut, norm=norm)
    layer = Layer(network.rows, network.row_bias, network.columns, network.column_bias, "double_sigmoid")
    return gate_rows_and_columns(x, network.units, shortcut, layer, norm)


def wide(given: dict[str, Any], network: Any) -> tuple[dict[str, Any], Any]:
    """The same in float64."""
    exact = type(network)(given["x"].shape[1]).double()
    exact.load_state_dict(network.state_dict())
    return {name: None if t is None else t.double() for name, t in given.items()}, exact


def run(case: Case, given: dict[str, Any], network: Any, grad: Tensor, *, fast: bool = False) -> list[Tensor]:
    """y, the running statistics, and all gradients."""
    given = {
        name: None if t is None else t.detach().clone() if t.dim() == 1 else t.detach() for name, t in given.items()
    }
    leaves = [t.requires_grad_() for name, t in given.items() if t is not None and not name.startswith("running")]
    y = call(case, given, network, fast=fast)
    running = [given["running_mean"], given["running_var"]]
    return [y.detach(), *running, *torch.autograd.grad(y, [*leaves, *network.parameters()], grad.to(y.dtype))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    errors, found = [], []
    for seed in range(7, -1, -1):
        given, network, grad = draw(case, seed)
        exact, twin = wide(given, network)
        if case.tail:
            with torch.no_grad():
                before = call(case, exact | {"shortcut": None}, twin, fast=False) + exact["shortcut"]
            grad = away_from_the_kink(grad, before)
            exact, _ = wide(given, network)
        right = run(case, exact, twin, grad.double())
        plain = run(case, given, network, grad)
        errors.append([largest_error(a, b) for a, b in zip(plain, right, strict=True)])
        found = [given, network, grad, plain, right]
    given, network, grad, plain, right = found
    ours = run(case, given, network, grad, fast=True)
    assert ours[0].stride() == (plain[0] if case.layout == "contiguous" else ours[0]).stride()
    for i, (a, b, c) in enumerate(zip(ours, plain, right, strict=True)):
        # How far plain PyTorch is off on a vector is luck: its error on several draws, and a rounding, count.
        error = max(*(each[i] for each in errors), torch.finfo(case.dtype).eps * c.abs().max().item())
        assert_within(a, b, c, f"result {i}", plain_error=error)


def test_statistics_far_from_zero() -> None:
    """A mean a thousand times the deviation: a difference of sums of squares would leave no digit of the variance."""
    torch.manual_seed(0)
    x, network = torch.randn(4, 8, 20, 30) + 1000.0, Network(8)
    running, exact = [torch.zeros(8), torch.ones(8)], [torch.zeros(8).double(), torch.ones(8).double()]
    gate_rows_and_columns(x, network, norm=BatchNorm(None, None, *running, training=True))
    batch_norm(x.double(), BatchNorm(None, None, *exact, training=True))
    torch.testing.assert_close(running[0].double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(running[1].double(), exact[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        (Case(layout="channels_last", shape=(1, 32, 40, 40)), 4, 6),
        (Case(tail=False, shape=(1, 32, 40, 40)), 3, 5),
        (Case(training=False, shape=(1, 32, 40, 40)), 4, 5),
    ],
    ids=str,
)
def test_how_often_the_map_moves(case: Case, forward: int, backward: int) -> None:
    """Beside it vectors of a value a row or column: means of two parts, written and read, and likewise backward."""
    from benchmarks.counted.meter import count_kernels

    given, network, grad = draw(case)
    leaves = [t.requires_grad_() for name, t in given.items() if t is not None and not name.startswith("running")]
    with count_kernels() as before:
        y = call(case, given, network, fast=True)
    with count_kernels() as after:
        torch.autograd.grad(y, leaves, grad)
    size, strips = grad.numel() * grad.itemsize, 2 * grad.numel() // 40 * grad.itemsize
    bits = case.tail * size // 32
    for found, passes, vectors in ((before, forward, 6), (after, backward, 9)):
        assert passes * size <= found.total - (1 + (found is after)) * bits <= passes * size + vectors * strips
    assert sum(before.launches.values()) == (4 if case.training else 3)
    assert sum(after.launches.values()) == 4


@pytest.mark.parametrize(
    "case", [Case(), Case(kind="with its last layer", layout="channels_last", training=False, tail=False)], ids=str
)
def test_second_derivatives_and_a_backward_twice(case: Case) -> None:
    """A gradient penalty's gradient; and twice the same bits."""
    given, network, grad = draw(case)
    found = []
    names = "x", "weight", "bias"
    for fast in (True, False):
        own = {name: None if t is None else t.detach().clone() for name, t in given.items()}
        leaves = [*(own[name].requires_grad_() for name in names), *network.parameters()]
        y = call(case, own, network, fast=fast)
        first = torch.autograd.grad(y, leaves, grad, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves, retain_graph=True)
        found.append([*first, *second, *torch.autograd.grad(y, leaves, grad)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 * b.abs().max().item(), rtol=1e-4)
    y = call(case, given, network.requires_grad_(), fast=True)
    once, twice = (torch.autograd.grad(y, network.rows, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "shortcut", "network", "none"])
def test_only_some_gradients(wanted: str, training: bool) -> None:
    case = Case(training=training)
    given, network, grad = draw(case)
    names = [name for name in given if not name.startswith("running")]
    whole = dict(zip([*names, "network"], run(case, given, network, grad, fast=True)[3:-1], strict=True))
    network.requires_grad_(wanted == "network")
    given = {name: t.clone().requires_grad_(name == wanted) for name, t in given.items()}
    y = call(case, given, network, fast=True)
    assert y.requires_grad == (wanted != "none")
    if y.requires_grad:
        leaf = network.rows if wanted == "network" else given[wanted]
        assert torch.equal(torch.autograd.grad(y, leaf, grad)[0], whole[wanted])


@pytest.mark.parametrize("looks_at", ["rows", "columns", "neither"])
def test_a_network_that_does_not_look_at_both(looks_at: str) -> None:
    case, constant = Case(), torch.rand(1, 6, 1, 1)

    def network(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.sigmoid(rows) if looks_at == "rows" else constant.expand_as(rows)
        return first, torch.tanh(columns) if looks_at == "columns" else constant.expand_as(columns)

    given, _, grad = draw(case)
    x, shortcut, weight, bias, *running = (t.requires_grad_(t.dim() > 1) for t in given.values())
    norm, found = BatchNorm(weight, bias, *running, training=True), []
    for fast in (True, False):
        y = gate_rows_and_columns(x, network, shortcut, norm=norm) if fast else call(case, given, network, fast=False)
        found.append([y, *torch.autograd.grad(y, [x, shortcut], grad)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gates_wider_than_the_map() -> None:
    case = Case(dtype=BF16, tail=False)
    given, network, _ = draw(case)
    network.float()
    x = given["x"].requires_grad_()

    def widened(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        return network(rows.float(), columns.float())

    norm = BatchNorm(given["weight"].float(), given["bias"].float(), training=True)
    v = batch_norm(x, norm)
    rows, columns = widened(v.mean(3, keepdim=True), v.mean(2, keepdim=True))
    found = [gate_rows_and_columns(x, widened, norm=norm), v * rows * columns]
    for y in zip(*((y, torch.autograd.grad(y.square().mean(), x)[0]) for y in found), strict=True):
        assert y[0].dtype == y[1].dtype
        torch.testing.assert_close(*y, rtol=3e-2, atol=3e-2 * y[1].abs().max().item())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    case = Case(layout=layout, training=layout == "contiguous")
    given, _, grad = draw(case)
    x, _, *tensors = given.values()
    if case.training:
        tensors[2:] = None, None
    constants = case.training, 1e-5
    # How many parts there are goes by the size, which no symbol stands for: compiled, all of it is a formula.
    static = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(normed_strips.POOL.registered, (x, *tensors, *constants), test_utils=static)
    rows, columns, *parts, mean, variance = normed_strips.POOL(x, *tensors, *constants)
    gates = torch.rand(rows.shape), torch.rand(columns.shape), *(None,) * 4, "none"
    sums = parts[0].new_zeros((2, 1, 6)), parts[0].new_zeros((2, 1, 6))
    arguments = *gates, *tensors, mean, variance, *parts, None, *sums, rows, columns, *constants
    for needs in ((True, True), (False, False)):
        torch.library.opcheck(normed_strips.BWD.registered, (grad, x, *arguments, *needs), test_utils=static)
