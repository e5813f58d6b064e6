"""Gates of rows and of columns by a network of anybody's, under the interpreter, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.ops.drawn import KINDS, sizes
from tests.parity import LAYOUTS, assert_within, away_from_the_kink, lay_out
from triton_attn.ops import strip_passes
from triton_attn.ops.batch_norm import NO_NORM
from triton_attn.ops.strips import Layer, gate_rows_and_columns

pytestmark = pytest.mark.interpreter


class Network(nn.Module):
    """Whatever there is a gradient of: both gates depend on both means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(torch.randn(channels, 1, 1)) for _ in range(2))

    def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        across, down = columns.mean(3, keepdim=True), rows.mean(2, keepdim=True)
        return torch.sigmoid(2 * self.rows * (rows + across)), torch.tanh(self.columns * (1 + columns * down))


class Layered(nn.Module):
    """A network whose last layer is told: 3 units for every row and column."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(torch.randn(channels, 3, 1, 1)) for _ in range(2))
        self.row_bias, self.column_bias = (nn.Parameter(torch.randn(channels)) for _ in range(2))

    def units(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        mean = rows.mean((1, 2), keepdim=True)
        return tuple(
            torch.cat([each, each * mean, mean - each], 1) for each in (rows.sum(1, True), columns.sum(1, True))
        )

    def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        of_rows, of_columns = self.units(rows, columns)
        return (
            2 * torch.sigmoid(nn.functional.conv2d(of_rows, self.rows, self.row_bias)),
            2 * torch.sigmoid(nn.functional.conv2d(of_columns, self.columns, self.column_bias)),
        )


NETWORKS = {"anybody's": Network, "with its last layer": Layered}


def fast(x: Tensor, network: nn.Module, shortcut: Tensor | None = None) -> Tensor:
    if isinstance(network, Network):
        return gate_rows_and_columns(x, network, shortcut)
    layer = Layer(network.rows, network.row_bias, network.columns, network.column_bias, "double_sigmoid")
    return gate_rows_and_columns(x, network.units, shortcut, layer)


def plain(x: Tensor, network: nn.Module, shortcut: Tensor | None = None) -> Tensor:
    rows, columns = network(x.mean(3, keepdim=True), x.mean(2, keepdim=True))
    y = x * rows * columns
    return y if shortcut is None else torch.relu(y + shortcut)


def run(function: Callable[..., Tensor], network: nn.Module, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    x, *shortcut = [t.detach().requires_grad_() for t in inputs]
    y = function(x, network, *shortcut)
    return [y.detach(), *torch.autograd.grad(y, [x, *shortcut, *network.parameters()], grad.to(y.dtype))]


def check(shape: tuple[int, ...], dtype: torch.dtype, layout: str, with_shortcut: bool, kind: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind](shape[1]).to(dtype)
    exact = NETWORKS[kind](shape[1]).double()
    exact.load_state_dict(network.state_dict())
    inputs = [lay_out(torch.randn(shape).to(dtype), layout) for _ in range(1 + with_shortcut)]
    grad = lay_out(torch.randn(shape).to(dtype), layout)
    wide = [t.double() for t in inputs]
    if with_shortcut:
        with torch.no_grad():
            grad = away_from_the_kink(grad, plain(wide[0], exact) + wide[1])
    ours, theirs = (run(function, network, inputs, grad) for function in (fast, plain))
    right = run(plain, exact, wide, grad.double())
    for name, *each in zip(("y", "dx", *("others",) * 5), ours, theirs, right, strict=False):
        assert_within(*each, name)
    assert ours[0].is_contiguous(memory_format=torch.channels_last) == theirs[0].is_contiguous(
        memory_format=torch.channels_last
    )


@settings(max_examples=6)
@given(
    **sizes(70, 40, 40),
    **KINDS,
    kind=st.sampled_from(sorted(NETWORKS)),
)
@example(1, 1, 1, 1, torch.float32, "contiguous", True, "anybody's")
@example(2, 5, 33, 9, torch.float16, "channels_last", True, "anybody's")
@example(2, 48, 7, 7, torch.float16, "contiguous", True, "with its last layer")
@example(1, 40, 1, 13, torch.bfloat16, "channels_last", False, "with its last layer")
@example(2, 5, 33, 9, torch.float16, "channels_last", True, "with its last layer")
def test_parity(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype, layout: str, with_shortcut: bool, kind: str
) -> None:
    channels = max(min(channels, 2**12 // (batch * height * width)), 1)
    check((batch, channels, height, width), dtype, layout, with_shortcut, kind)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 3, 5, 300), (1, 3, 130, 5), (2, 70, 9, 6), (1, 2, 70, 70)], ids=str)
def test_parity_over_many_parts(shape: tuple[int, ...], layout: str) -> None:
    """Rows wider than a program's columns, and columns higher than a program's rows."""
    check(shape, torch.float32, layout, with_shortcut=True, kind="anybody's")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_traffic(memory_format: torch.memory_format, with_shortcut: bool) -> None:
    """3 + 4 passes, 4 + 5 with a shortcut and its mask; beside them vectors of 4 bytes a row or column."""
    from benchmarks.counted.meter import count_kernels

    shape = (1, 32, 40, 40)  # of 32 rows and 8 more
    inputs = [torch.randn(shape).half().contiguous(memory_format=memory_format) for _ in range(1 + with_shortcut)]
    grad = torch.randn(shape).half().contiguous(memory_format=memory_format)
    x, *shortcut = (t.requires_grad_() for t in inputs)
    size, strip = x.numel() * 2, 2 * x.numel() // 40 * 4
    network = Network(32).half()
    with count_kernels() as forward:
        y = gate_rows_and_columns(x, network, *shortcut)
    with count_kernels() as backward:
        torch.autograd.grad(y, [x, *shortcut], grad)
    extra = with_shortcut * (1 + 1 / 16)
    # Sums may come in two parts, gates are read by two tiles of the applies.
    assert forward.total <= (3 + extra) * size + 4 * strip
    assert backward.total <= (4 + with_shortcut * (1 + 2 / 16)) * size + 8 * strip
    assert dict(forward.launches) == {"strip_sums_kernel": 1, "strip_apply_fwd_kernel": 1}
    assert dict(backward.launches) == {"strip_sums_kernel": 1, "strip_apply_bwd_kernel": 1}
    assert forward.total_sectors <= 1.3 * forward.total
    assert backward.total_sectors <= 1.3 * backward.total


def test_traffic_where_the_passes_make_the_gates() -> None:
    """3.1 + 4.2 passes at 28²: the means are written, and backward the gradients of logits and of means."""
    from benchmarks.counted.ceilings import ALLOWED
    from benchmarks.counted.meter import count_kernels

    x, grad = (lay_out(torch.randn(1, 64, 28, 28).half(), "channels_last") for _ in range(2))
    of_rows, of_columns = (torch.randn(64, 8).half().requires_grad_() for _ in range(2))
    layer = Layer(of_rows, None, of_columns, None, "sigmoid")
    x.requires_grad_()
    with count_kernels() as forward:
        y = gate_rows_and_columns(x, lambda rows, columns: (rows[:, :8], columns[:, 8:16]), None, layer)
    with count_kernels() as backward:
        torch.autograd.grad(y, [x, of_rows], grad)
    size = x.numel() * 2
    assert forward.total <= 3.1 * size * ALLOWED
    assert backward.total <= 4.2 * size * ALLOWED


@pytest.mark.parametrize("looks_at", ["rows", "columns", "neither"])
def test_a_network_that_does_not_look_at_both(looks_at: str) -> None:
    torch.manual_seed(0)
    constant = torch.rand(1, 6, 1, 1)

    def network(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.sigmoid(rows) if looks_at == "rows" else constant.expand_as(rows)
        return first, torch.tanh(columns) if looks_at == "columns" else constant.expand_as(columns)

    for layout in LAYOUTS[:2]:
        x, shortcut, grad = (lay_out(torch.randn(2, 6, 5, 3), layout).requires_grad_() for _ in range(3))
        found = []
        for function in (gate_rows_and_columns, plain):
            y = function(x, network, shortcut)
            found.append([y, *torch.autograd.grad(y, [x, shortcut], grad)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gates_wider_than_the_map_and_a_shortcut_of_another_dtype() -> None:
    torch.manual_seed(0)
    network, x = Network(4), torch.randn(2, 4, 3, 5).bfloat16()

    def wide(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        return network(rows.float(), columns.float())

    for shortcut in (None, torch.randn(2, 4, 3, 5)):
        ours, theirs = (f(x, wide, shortcut) for f in (gate_rows_and_columns, plain))
        assert ours.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    half = Network(4).bfloat16()
    ours, theirs = (f(x, half, torch.ones(2, 4, 3, 5)) for f in (gate_rows_and_columns, plain))
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_opcheck(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    torch.manual_seed(0)
    x, shortcut, grad = (lay_out(torch.randn(2, 6, 5, 3), layout) for _ in range(3))
    rows, columns = torch.rand(2, 6, 5, 1), torch.rand(2, 6, 1, 3)
    torch.library.opcheck(strip_passes.POOL.registered, (x,))
    channels_last = layout == "channels_last"
    gates = rows, columns, *strip_passes.NO_LAYER
    if channels_last:
        gates = torch.randn(2, 5, 3), torch.randn(2, 3, 3), torch.randn(6, 3), None, torch.randn(6, 3), None, "sigmoid"
    norm = NO_NORM if not channels_last else (torch.randn(6), torch.rand(6), None, None, True, 1e-5, "none")
    for tail, saves in ((shortcut, True), (None, False)):
        torch.library.opcheck(strip_passes.APPLY.registered, (x, *gates, *norm, tail, saves))
    _, bits = strip_passes.APPLY.registered(x, *gates, *norm, shortcut, True)
    for each in (None, bits) if layout == "contiguous" else (bits,):
        given = grad, x, *gates, *norm, each
        # With a norm there are parts, of a number that no symbol stands for.
        dynamic = () if channels_last else ("test_aot_dispatch_dynamic",)
        checks = "test_schema", "test_autograd_registration", "test_faketensor", *dynamic
        torch.library.opcheck(strip_passes.SUMS_BWD.registered, given, test_utils=checks)
        torch.library.opcheck(strip_passes.APPLY_BWD.registered, (grad, *gates, each, rows, columns, channels_last))
