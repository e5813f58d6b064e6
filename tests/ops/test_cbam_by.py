"""CBAM by networks of anybody's, under the interpreter, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.ops.drawn import KINDS, sizes
from tests.parity import LAYOUTS, assert_within, away_from_the_kink, largest_error, lay_out
from triton_attn.ops import cbam_by as ops
from triton_attn.ops.batch_norm import NO_NORM
from triton_attn.ops.cbam_by import cbam_by
from triton_attn.reference.cbam import pooled_channels

pytestmark = pytest.mark.interpreter


class Networks(nn.Module):
    """Small ones that use all that they are given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.taps = nn.Parameter(torch.randn(2, channels, 1, 1)), nn.Parameter(torch.randn(1, 2, 3, 3) / 3)

    def channels(self, mean: Tensor, peak: Tensor) -> Tensor:
        return 0.5 + torch.sigmoid(self.weight[0] * mean + self.weight[1] * peak / 4 + mean.mean(1, keepdim=True))

    def positions(self, mean: Tensor, top: Tensor) -> Tensor:
        return torch.tanh(nn.functional.conv2d(torch.cat([mean, top], 1), self.taps, padding=1)) + 1


def by_ops(x: Tensor, networks: Networks, shortcut: Tensor | None = None) -> Tensor:
    return cbam_by(x, networks.channels, networks.positions, shortcut)


def plain(x: Tensor, networks: Networks, shortcut: Tensor | None = None) -> Tensor:
    u = x * networks.channels(x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
    y = u * networks.positions(*pooled_channels(u))
    return y if shortcut is None else torch.relu(y + shortcut)


def run(function: Callable[..., Tensor], networks: Networks, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    x, *shortcut = [t.detach().requires_grad_() for t in inputs]
    y = function(x, networks, *shortcut)
    return [y.detach(), *torch.autograd.grad(y, [x, *shortcut, *networks.parameters()], grad.to(y.dtype))]


def clear(shape: tuple[int, ...]) -> Tensor:
    """A map in which no rounding decides which channel of a position is the largest behind the gates (0.5 to 1.5)."""
    winner = torch.randint(shape[1], (shape[0], 1, *shape[2:]))
    return (torch.randn(shape) / 8).scatter(1, winner, 3 + torch.rand(shape[0], 1, *shape[2:]))


def check(shape: tuple[int, ...], dtype: torch.dtype, layout: str, with_shortcut: bool, tied: bool = False) -> None:
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks, exact = Networks(shape[1]).to(dtype), Networks(shape[1]).double()
        exact.load_state_dict(networks.state_dict())
        x = clear(shape)
        inputs = [x.round() if tied else x, *(torch.randn(shape) for _ in range(with_shortcut))]
        inputs = [lay_out(t.to(dtype), layout) for t in inputs]
        grad, wide = lay_out(torch.randn(shape).to(dtype), layout), [t.double() for t in inputs]
        if with_shortcut:
            with torch.no_grad():
                grad = away_from_the_kink(grad, plain(wide[0], exact) + wide[1])
        theirs, right = run(plain, networks, inputs, grad), run(plain, exact, wide, grad.double())
        found.append((networks, inputs, grad, theirs, right))
    networks, inputs, grad, theirs, right = found[0]
    ours = run(by_ops, networks, inputs, grad)
    for i, (a, b, c) in enumerate(zip(ours, theirs, right, strict=True)):
        error = max(largest_error(each[3][i], each[4][i]) for each in found)
        assert_within(a, b, c, f"{i}", plain_error=error)


@settings(max_examples=6)
@given(
    **sizes(70, 20, 20),
    **KINDS,
    tied=st.booleans(),
)
@example(1, 1, 1, 1, torch.float32, "contiguous", True, False)
@example(2, 5, 13, 9, torch.float16, "channels_last", True, True)
@example(2, 48, 7, 7, torch.float16, "contiguous", True, False)
@example(1, 40, 12, 13, torch.float32, "channels_last", False, True)
@example(1, 40, 12, 13, torch.float32, "contiguous", False, True)
def test_parity(
    batch: int,
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    layout: str,
    with_shortcut: bool,
    tied: bool,
) -> None:
    channels = max(min(channels, 2**12 // (batch * height * width)), 1)
    check((batch, channels, height, width), dtype, layout, with_shortcut, tied)


@pytest.mark.parametrize("which", ["channels", "positions", "both"])
def test_networks_that_look_at_nothing(which: str) -> None:
    torch.manual_seed(0)
    networks = Networks(6)
    constant, map_ = torch.rand(2, 6, 1, 1), torch.rand(2, 1, 5, 3)
    if which != "positions":
        networks.channels = lambda *_: constant
    if which != "channels":
        networks.positions = lambda *_: map_
    for layout in LAYOUTS[:2]:
        x, shortcut, grad = (lay_out(torch.randn(2, 6, 5, 3), layout).requires_grad_() for _ in range(3))
        found = []
        for function in (by_ops, plain):
            y = function(x, networks, shortcut)
            found.append([y, *torch.autograd.grad(y, [x, shortcut], grad)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_opcheck(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fakes are traced with PyTorch's own torch.empty
    torch.manual_seed(0)
    x, shortcut, grad = (lay_out(torch.randn(2, 6, 5, 3), layout) for _ in range(3))
    gate, of_positions = torch.rand(2, 6), torch.rand(2, 1, 5, 3)
    pooled = ops._whole(ops.POOL_CHANNELS.registered(x, gate, *NO_NORM), x)
    # Blocks go by the map's size, which is a number: what traces symbols has the formula.
    static = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.POOL_CHANNELS.registered, (x, gate, *NO_NORM), test_utils=static)
    for saves in (False, True):
        torch.library.opcheck(ops.MULTIPLY.registered, (x, gate, of_positions, *NO_NORM, shortcut, saves))
    _, bits = ops.MULTIPLY.registered(x, gate, of_positions, *NO_NORM, shortcut, True)
    mean, peak, place = ops.POOL.registered(x, "both", True)
    basic = ("test_schema", "test_faketensor")  # what is not written of the sums differs from run to run
    for each in (None, bits):
        given = (grad, x, gate, of_positions, pooled, *NO_NORM, each)
        torch.library.opcheck(ops.MULTIPLY_BWD.registered, given, test_utils=basic)
        winner = ops.MULTIPLY_BWD.registered(*given)[1].amin(1)
        arguments = (grad, x, gate, of_positions, pooled, winner, each, mean, mean, peak, place)
        torch.library.opcheck(ops.APPLY_BWD.registered, arguments)
    torch.library.opcheck(ops.POOL_CHANNELS_BWD.registered, (x, pooled, winner, *NO_NORM, None, None), test_utils=basic)
