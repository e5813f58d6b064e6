"""Residual blocks whose batch norm goes with the attention behind it, under the interpreter: when they do, and as what.

What the op computes is tests/ops/test_normed_gate.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn import reference
from triton_attn.reference.resnet import Bottleneck

pytestmark = pytest.mark.interpreter
CHANNELS = 16
STRIPS, CBAM = "published.coordinate", "published.cbam"
# What is started where the batch norm goes with the attention, forward and backward.
GATES = "normed_apply_fwd_kernel", "normed_apply_bwd_kernel"
STARTED = {
    "eca": GATES,
    STRIPS: ("normed_strips_kernel", "normed_strips_bwd_kernel"),
    CBAM: ("normed_peak_kernel", "batch_norm_parameters_bwd_kernel"),
}


def block(name: str = "se", package: Any = triton_attn) -> Bottleneck:
    torch.manual_seed(0)
    kinds = {"se": lambda c: package.SEBlock(c, 4), "eca": package.ECABlock, STRIPS: by_strips(package)}
    kinds |= {CBAM: lambda c: package.published.CBAM(c, 4)}
    made = Bottleneck(CHANNELS, CHANNELS // 4, attention=kinds[name])
    nn.init.normal_(made.bn3.weight)
    return made


def by_strips(package: Any) -> Callable[[int], nn.Module]:
    """Without biases in front of its batch norm, whose gradients are rounding alone."""
    return lambda channels: package.published.CoordinateAttention(channels, bias=False)


def images() -> Tensor:
    return torch.randn(2, CHANNELS, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", STARTED)
def test_steps_as_the_plain_block_takes_them(name: str, started: list[str]) -> None:
    """Three of training and one of evaluation; every parameter and buffer comes out the same, counts to the bit.

    SE and a momentum that is a number were dropped: fifty steps of these are below.
    """
    ours, plain = block(name), block(name, reference)
    plain.load_state_dict(ours.state_dict())
    found = []
    for each in (ours, plain):
        each.bn3.momentum = None
        optimiser = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            each(images()).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            found.append(each.eval()(images()))
    assert [started.count(kernel) for kernel in STARTED[name]] == [4, 3]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    for (key, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


def network(package: Any) -> nn.Sequential:
    """The beginning and the end of ``resnet50("se", where="block")``, a hundredth as wide."""
    torch.manual_seed(0)
    down = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        Bottleneck(8, 4, 2, down, attention=lambda c: package.SEBlock(c, 4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )


def trained(model: nn.Module, dtype: torch.dtype) -> Tensor:
    """The losses of 50 steps, and behind them all that the network is in the end."""
    pictures = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    optimiser = torch.optim.SGD(model.to(dtype).parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(50):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures), torch.tensor([0, 1, 2]))
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.cat([torch.stack(losses), *(t.flatten() for t in model.state_dict().values())]).double()


def test_fifty_steps_of_training(started: list[str]) -> None:
    """As far from float64 as the plain network comes, of weights that are rounded otherwise: training amplifies that.

    What this is for shows in no step by itself: a statistic that is not taken, a gradient that is a little off, add up.
    """
    right = trained(network(reference), torch.float64)
    noise = torch.zeros_like(right)
    for seed in range(4):
        plain, draw = network(reference), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for each in plain.parameters():
                each.mul_(1 + 2**-24 * torch.randn(each.shape, generator=draw).sign() * bool(seed))
        noise = torch.maximum(noise, (trained(plain, torch.float32) - right).abs())
    ours = (trained(network(triton_attn), torch.float32) - right).abs()
    assert started.count("normed_apply_bwd_kernel") == 50
    assert right[49] < right[0] / 10
    assert ours[:50].max() <= 2 * noise[:50].max()
    assert ours[50:].norm() <= 2 * noise[50:].norm()


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_of_all_kinds(affine: bool, tracked: bool, training: bool, started: list[str]) -> None:
    ours, plain = block(), block(package=reference)
    found = []
    for each in (ours, plain):
        each.bn3 = nn.BatchNorm2d(CHANNELS, eps=0.1, affine=affine, track_running_stats=tracked)
        with torch.no_grad():
            found.append(each.train(training)(images()))
    assert "normed_apply_fwd_kernel" in started
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def listened(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


class OwnStrips(triton_attn.published.CoordinateAttention):
    """Somebody's own."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return super().forward(x, shortcut)


class OwnCBAM(triton_attn.published.CBAM):
    """Somebody's own."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return super().forward(x, shortcut)


class Norm(nn.BatchNorm2d):
    """Somebody's own."""


class Own(triton_attn.SEBlock):
    """Somebody's own."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return super().forward(x, shortcut)


CHANGES: dict[str, Callable[[Any], None]] = {
    "a hook on the batch norm": lambda b: listened(b.bn3),
    "a hook on the attention": lambda b: listened(b.attention),
    "a hook on a layer of the attention": lambda b: listened(b.attention.fc1),
    "a batch norm of another class": lambda b: setattr(b, "bn3", Norm(CHANNELS)),
    "a batch norm over processes": lambda b: setattr(b, "bn3", nn.SyncBatchNorm(CHANNELS).eval()),
    "no batch norm": lambda b: setattr(b, "bn3", nn.Identity()),
    "attention of another class": lambda b: setattr(b.attention, "__class__", Own),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_is_called(change: str, started: list[str]) -> None:
    ours = block().eval()
    CHANGES[change](ours)
    with torch.no_grad():
        y = ours(images())
        assert not any(name.startswith("normed") for name in started)
        assert "apply_gate_fwd_kernel" in started or "layer of" in change
        with triton_attn.use_backend("reference"):
            torch.testing.assert_close(y, ours(images()), rtol=1e-4, atol=1e-5)


NETWORKS: dict[str, Callable[[Any], None]] = {
    **{change: CHANGES[change] for change in CHANGES if "norm" in change},
    "a hook on the attention": CHANGES["a hook on the attention"],
    "attention of another class": lambda b: setattr(b.attention, "__class__", OWN[type(b.attention)]),
}
OWN = {triton_attn.published.CoordinateAttention: OwnStrips, triton_attn.published.CBAM: OwnCBAM}


@pytest.mark.parametrize("change", NETWORKS)
@pytest.mark.parametrize(("name", "kernel"), [(STRIPS, "strip_apply_fwd_kernel"), (CBAM, "spatial_apply_fwd_kernel")])
def test_in_front_of_networks_likewise(name: str, kernel: str, change: str, started: list[str]) -> None:
    ours = block(name).eval()
    NETWORKS[change](ours)
    with torch.no_grad():
        y = ours(images())
        assert STARTED[name][0] not in started
        assert kernel in started
        with triton_attn.use_backend("reference"):
            torch.testing.assert_close(y, ours(images()), rtol=1e-4, atol=1e-5)


def test_a_layer_of_a_network_is_called_behind_the_batch_norm_too(started: list[str]) -> None:
    ours, seen = block(STRIPS), []
    ours.attention.conv_h.register_forward_hook(lambda *_: seen.append(1))
    ours(images()).sum().backward()
    assert [started.count(kernel) for kernel in STARTED[STRIPS]] == [1, 1]
    assert seen == [1]


def test_what_does_not_fit_is_an_error_as_ever(started: list[str]) -> None:
    ours = block().eval().bfloat16()
    ours.bn3.double()
    with torch.no_grad(), pytest.raises(RuntimeError):
        ours(images().bfloat16())
    assert not any(name.startswith("normed") for name in started)


def test_attention_behind_the_block_sees_its_map(started: list[str]) -> None:
    ours = block().eval()
    ours.attend_after(triton_attn.ECABlock)
    with torch.no_grad():
        y = ours(images())
        assert started[-1] == "apply_gate_fwd_kernel"
        with triton_attn.use_backend("reference"):
            torch.testing.assert_close(y, ours(images()), rtol=1e-4, atol=1e-5)


def test_compiled_it_is_one_op_in_the_graph() -> None:
    from benchmarks.counted.graphs import Graphs

    ours, graphs = block(), Graphs("aot_eager")
    plain = copy.deepcopy(ours)
    y = torch.compile(ours, fullgraph=True, backend=graphs)(images())
    y.square().mean().backward()
    with triton_attn.use_backend("reference"):
        right = plain(images())
        right.square().mean().backward()
    assert graphs.ops == [["triton_attn.normed_channel_gate.default"]]
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-5)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    for (key, a), b in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


# The two blocks ask the same function; each is here once.
@pytest.mark.parametrize(
    ("name", "backend", "ops"), [("se", "auto", []), ("eca", "triton", ["triton_attn.eca.default"])]
)
def test_compiled_the_plain_formula_stands_where_the_batch_norm_cannot_be_part_of_the_op(
    name: str, backend: Any, ops: list[str]
) -> None:
    """An op would be a wall, in front of which the batch norm writes its map; unless it is asked for."""
    from benchmarks.counted.graphs import Graphs

    ours, graphs = block(name), Graphs("aot_eager")
    ours.bn3 = Norm(CHANNELS)
    with triton_attn.use_backend(backend), torch.no_grad():
        y = torch.compile(ours, fullgraph=True, backend=graphs)(images())
    assert graphs.ops == [ops]
    with triton_attn.use_backend("reference"), torch.no_grad():
        torch.testing.assert_close(y, ours(images()), rtol=1e-4, atol=1e-5)


def test_autocast(started: list[str]) -> None:
    ours = block()
    plain = copy.deepcopy(ours)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(images().bfloat16())
        with triton_attn.use_backend("reference"):
            right = plain(images().bfloat16())
    assert "normed_apply_fwd_kernel" in started
    assert y.dtype == right.dtype
    torch.testing.assert_close(y, right, rtol=5e-2, atol=5e-2)
