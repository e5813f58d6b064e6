"""Blocks and maps for the tests on a GPU, at ResNet-50's shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.parity import assert_within, clear_maxima, drawn
from triton_attn import reference, registry

DEVICE = "cuda"
# (C, H, W) of ResNet-50 at 224²: the stem, and the residual blocks of layer1 to layer4.
SITES = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
ODD = [(3, 63, 7, 7), (1, 17, 33, 5), (2, 96, 1, 1), (0, 32, 8, 8)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

CHANNEL = ("se", "coordinate", "eca", "cbam", "dual")
POSITION = ("pixel", "gate")
# What is served by steps of its own; the others are the tutorial's ops behind library layers.
OWN_STEPS = ("cbam", "coordinate", "global_context", "pixel", "position", "scse", "simam")
PUBLISHED = tuple(f"published.{name}" for name in OWN_STEPS)
# Biases that a softmax behind them takes out again: their gradients are rounding alone.
IDLE = {"published.position": "key_conv.bias", "published.global_context": "conv.bias"}
GATED = "gate by a signal"
SIGNAL = 96  # channels of that


def twins(name: str, channels: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The fast block, and the exact one with the same parameters."""
    key, options = ("gate", {"gating_channels": SIGNAL}) if name == GATED else (name, {})
    fast, exact = (of[key](channels, **options).eval() for of in (registry.ALL, reference.registry.ALL))
    with torch.no_grad():
        if key in POSITION:  # the hidden ReLU's input is kept from 0, where rounding would decide what passes
            fast.conv1.bias[::2] += 4
            fast.conv1.bias[1::2] -= 4
        if name == "published.position":
            fast.gamma.fill_(0.8)
    fast = fast.to(DEVICE, dtype)
    exact = exact.to(DEVICE, torch.float64)
    exact.load_state_dict(fast.state_dict())
    return fast, exact


def maps(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, count: int) -> list[Tensor]:
    """Random maps."""
    return [torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=memory_format) for _ in range(count)]


def draw(
    name: str,
    exact: nn.Module,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    with_shortcut: bool = True,
) -> tuple[list[Tensor], Tensor, list[str]]:
    """What the block takes, y's gradient, and the keywords; no rounding decides which channel is the largest."""
    x, shortcut, grad = maps(shape, dtype, memory_format, 3)
    if name in ("cbam", "dual") and x.numel():
        batch, channels, height, width = shape
        winner = torch.randint(channels, (batch, 1, height, width), device=DEVICE)
        x = (x / 8).scatter(1, winner, 4 + x[:, :1].clamp(-1, 1)).contiguous(memory_format=memory_format)
    if name == "published.cbam":
        with torch.no_grad():
            x = clear_maxima(exact, x.double()).to(dtype).contiguous(memory_format=memory_format)
    given = {"shortcut": shortcut} if with_shortcut else {}
    if name == GATED:  # of half the size
        given["gating"] = maps((shape[0], SIGNAL, shape[2] // 2, shape[3] // 2), dtype, memory_format, 1)[0]
    return [x, *given.values()], grad, list(given)


def hold(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    with_shortcut: bool,
    *,
    seeds: int,
) -> None:
    """Hold a block to the rule on the last of some draws, plain PyTorch's error being its largest on any of them.

    Twice the same call gives the same bits, and the result has the layout of the map.

    Args:
        name, shape, dtype, memory_format, with_shortcut: of :func:`draw`.
        seeds: how many draws.
    """
    errors = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        fast, exact = twins(name, shape[1], dtype)
        found = drawn(fast, exact, *draw(name, exact, shape, dtype, memory_format, with_shortcut))
        errors.append(found.errors)
    ours, again = found.ours(), found.ours()
    assert ours[0].stride() == found.inputs[0].stride()
    for i, what in enumerate(found.names):
        if what != f"gradient of {IDLE.get(name)}":
            assert_within(ours[i], found.plain[i], found.exact[i], what, plain_error=max(each[i] for each in errors))
        assert torch.equal(ours[i], again[i]), what
