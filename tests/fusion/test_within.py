"""Blocks within which attention takes in the batch norm in front of it, under the interpreter: when, and as what.

What the op computes is tests/ops/test_normed_gate.py's; that on a CPU not a bit differs, tests/fusion/test_fuse.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, BlurPool2d, ConvNormAct, SEModule
from timm.layers.coord_attn import CoordAttn
from timm.models import byobnet, maxxvit, regnet
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, EdgeResidual, InvertedResidual, SqueezeExcite
from torch import Tensor, nn
from torchvision.models import efficientnet, mobilenetv3
from torchvision.models.regnet import BottleneckTransform
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

import triton_attn
from benchmarks.counted.graphs import Graphs
from triton_attn.ops import launch

pytestmark = pytest.mark.interpreter
BYOB = byobnet.LayerFn(attn=SEModule)


def mobilenet() -> nn.Module:
    settings = mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)
    return mobilenetv3.InvertedResidual(settings, nn.BatchNorm2d)


def plain_layers(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), *between, SqueezeExcitation(8, 4), nn.Conv2d(8, 4, 1))


BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm inverted": (lambda: InvertedResidual(8, 8, exp_ratio=2, act_layer=nn.SiLU, se_layer=SqueezeExcite), "silu"),
    "timm separable": (
        lambda: DepthwiseSeparableConv(8, 8, act_layer=nn.Hardswish, se_layer=SqueezeExcite),
        "hardswish",
    ),
    "timm edge": (lambda: EdgeResidual(8, 12, stride=2, se_layer=SqueezeExcite), "relu"),
    "timm regnet": (lambda: regnet.Bottleneck(8, 8, group_size=4, se_ratio=0.5), "relu"),
    "timm maxvit": (lambda: maxxvit.MbConvBlock(8, 8), "gelu"),
    "timm byobnet, basic": (lambda: byobnet.BasicBlock(8, 8, layers=BYOB), ""),
    "timm byobnet, bottleneck": (lambda: byobnet.BottleneckBlock(8, 8, layers=BYOB), "relu"),
    "timm byobnet, dark": (lambda: byobnet.DarkBlock(8, 8, layers=BYOB), ""),
    "timm byobnet, edge": (lambda: byobnet.EdgeBlock(8, 8, layers=BYOB), "relu"),
    "torchvision mobilenet": (mobilenet, "hardswish"),
    "torchvision efficientnet": (
        lambda: efficientnet.MBConv(efficientnet.MBConvConfig(2, 3, 1, 8, 8, 1), 0.0, nn.BatchNorm2d),
        "silu",
    ),
    "torchvision regnet": (lambda: BottleneckTransform(8, 8, 1, nn.BatchNorm2d, nn.ReLU, 4, 1.0, 0.5), "relu"),
    "layers": (plain_layers, ""),
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was started of the kernel that applies batch norm and gate: the activation between them."""
    found: list[str] = []
    start = launch.start

    def watched(kernel: Any, *arguments: Any, **more: Any) -> None:
        if kernel.fn.__name__ == "normed_apply_fwd_kernel":
            found.append(more["ACTIVATION"])
        start(kernel, *arguments, **more)

    monkeypatch.setattr(launch, "start", watched)
    return found


def images() -> Tensor:
    return torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_step_of_training_and_one_of_evaluation(name: str, started: list[str]) -> None:
    build, activation = BLOCKS[name]
    plain = build()
    ours = copy.deepcopy(plain)
    (entry,) = triton_attn.fuse(ours)
    assert entry.norm
    assert not entry.tail
    assert entry.note == "one op, with batch norm" + (f" and {activation}" if activation else "")
    found = []
    for each in (plain, ours):
        x = images().requires_grad_()
        y = each.train()(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *each.parameters()])
        with torch.no_grad():
            found.append([y, *gradients, *each.buffers(), each.eval()(images())])
    assert started == [activation or "none"] * 2
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(b.abs().max().item(), 1.0))


def listened(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


def blurred() -> nn.Module:
    layers = ConvNormAct(8, 8, 3, stride=2, aa_layer=BlurPool2d), SEModule(8)
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1))


LEFT: dict[str, Callable[[], nn.Module]] = {
    "no batch norm": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), SEModule(8)),
    "an activation without a kernel": lambda: plain_layers(nn.Mish()),
    "two activations": lambda: plain_layers(nn.ReLU(), nn.SiLU()),
    "two activations, one of the batch norm's": lambda: nn.Sequential(BatchNormAct2d(8), nn.SiLU(), SEModule(8)),
    "a blur behind the batch norm": blurred,
    "rows and columns behind an activation": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), CoordAttn(8)),
    "gates by parts": lambda: nn.Sequential(nn.BatchNorm2d(8), SEModule(8, norm_layer=nn.BatchNorm2d)),
    "attention first": lambda: nn.Sequential(SEModule(8), nn.BatchNorm2d(8)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_no_batch_norm_goes_with_is_fused_by_itself(name: str) -> None:
    block = LEFT[name]()
    kind = type(block)
    (entry,) = triton_attn.fuse(block)
    assert entry.fused
    assert not entry.norm
    assert type(block) is kind


CHANGES: dict[str, Callable[[Any], None]] = {
    "a hook on the batch norm": lambda block: listened(block.block[1][1]),
    "a hook on the activation": lambda block: listened(block.block[1][2]),
    "a hook on what holds them": lambda block: listened(block.block[1]),
    "a hook on the attention": lambda block: listened(block.block[2]),
    "a hook on a layer of the attention": lambda block: listened(block.block[2].fc1),
    "another activation": lambda block: block.block[1].__setitem__(2, nn.Mish()),
    "a batch norm over processes": lambda block: block.block[1].__setitem__(1, nn.SyncBatchNorm(16).eval()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_later_is_called(change: str, started: list[str]) -> None:
    block = mobilenet().eval()
    triton_attn.fuse(block)
    CHANGES[change](block)
    with torch.no_grad():
        y = block(images())
        assert not started
        with triton_attn.use_backend("reference"):
            torch.testing.assert_close(y, block(images()), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_that_nobody_read_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version's, whose forward may be another."""
    from triton_attn.fusion import layers, swap

    swap.known()
    monkeypatch.delitem(layers.NORMS, BatchNormAct2d)
    block = BLOCKS["timm inverted"][0]()
    (entry,) = triton_attn.fuse(block)
    assert not entry.norm
    assert type(block) is InvertedResidual


def test_compiled_it_is_one_op_in_the_graph() -> None:
    block, graphs = mobilenet(), Graphs("aot_eager")
    triton_attn.fuse(block)
    torch.compile(block, fullgraph=True, backend=graphs)(images()).square().mean().backward()
    assert graphs.ops == [["triton_attn.normed_channel_gate.default"]]


def test_convolution_norm_and_activation_in_one_module_are_taken_apart(started: list[str]) -> None:
    block = nn.Sequential(Conv2dNormActivation(8, 8, 1), SqueezeExcitation(8, 4))
    triton_attn.fuse(block)
    with torch.no_grad():
        block(images())
    assert started == ["relu"]
