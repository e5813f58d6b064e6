"""MONAI, segmentation_models_pytorch and ultralytics, each where it is installed; none of them is a dependency."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn import backend

Case = tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]
MAP = (2, 16, 5, 7)


def made(module: str, name: str, *arguments: object, **options: object) -> Callable[[], nn.Module]:
    """A class of a library, which is asked for when the test runs."""
    return lambda: getattr(pytest.importorskip(module), name)(*arguments, **options)


MONAI, UNET = "monai.networks.blocks", "monai.networks.nets.attentionunet"
SMP = "segmentation_models_pytorch.encoders"
YOLO = "ultralytics.nn.modules"
CASES: dict[str, Case] = {
    "monai, se of a signal": (made(MONAI, "ChannelSELayer", 1, 16), ((2, 16, 9),)),
    "monai, se of a map": (made(MONAI, "ChannelSELayer", 2, 16), (MAP,)),
    "monai, se of a volume": (made(MONAI, "ChannelSELayer", 3, 16), ((2, 16, 3, 4, 5),)),
    "monai, se, other activations": (made(MONAI, "ChannelSELayer", 2, 16, 4, "leakyrelu", "relu"), (MAP,)),
    "monai, residual se of a map": (made(MONAI, "ResidualSELayer", 2, 16), (MAP,)),
    "monai, residual se of a volume": (made(MONAI, "ResidualSELayer", 3, 16), ((2, 16, 3, 4, 5),)),
    "monai, gate of a map": (
        made("monai.networks.nets.attentionunet", "AttentionBlock", 2, 8, 4, 16),
        ((2, 4, 5, 7), MAP),
    ),
    "monai, gate of a volume": (
        made(UNET, "AttentionBlock", 3, 8, 4, 16),
        ((2, 4, 3, 4, 5), (2, 16, 3, 4, 5)),
    ),
    "smp, senet": (made(f"{SMP}._senet", "SEModule", 16, 4), (MAP,)),
    "smp, senet's bottleneck": (made(f"{SMP}._senet", "SEResNetBottleneck", 16, 4, 1, 4), (MAP,)),
    "smp, mobileone": (made(f"{SMP}.mobileone", "SEBlock", 16, 0.25), (MAP,)),
    "smp, scse": (made("segmentation_models_pytorch.base.modules", "SCSEModule", 16, 4), (MAP,)),
    "ultralytics, channels": (made(f"{YOLO}.conv", "ChannelAttention", 16), (MAP,)),
    "ultralytics, positions": (made(f"{YOLO}.conv", "SpatialAttention"), (MAP,)),
    "ultralytics, cbam": (made(f"{YOLO}.conv", "CBAM", 16), (MAP,)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A module in evaluation, a fused copy, and inputs."""
    build, shapes = CASES[name]
    plain = build().eval()
    fused = copy.deepcopy(plain)
    report = triton_attn.fuse(fused)
    assert report
    assert not report.left
    return plain, fused, [torch.randn(shape, requires_grad=True) for shape in shapes]


def results(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    y = module(*inputs)
    return [y, *torch.autograd.grad(y.square().sum(), [*inputs, *module.parameters()])]


@pytest.mark.parametrize("name", CASES)
def test_on_a_cpu_not_a_bit_differs(name: str) -> None:
    plain, fused, inputs = pair(name)
    assert all(torch.equal(*each) for each in zip(results(plain, inputs), results(fused, inputs), strict=True))
    assert triton_attn.unfuse(fused) > 0
    assert [type(module) for module in fused.modules()] == [type(module) for module in plain.modules()]


@pytest.mark.interpreter
@pytest.mark.parametrize("name", CASES)
def test_by_the_kernels(name: str) -> None:
    plain, fused, inputs = pair(name)
    with backend.listen() as heard:
        ours = results(fused, inputs)
    assert {choice.backend for choice in heard} == {"triton"}
    for ours_, plain_ in zip(ours, results(plain, inputs), strict=True):
        torch.testing.assert_close(ours_, plain_, atol=1e-4, rtol=1e-4)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["monai, se of a volume", "monai, gate of a volume"])
def test_the_layout_of_a_volume_stays(name: str) -> None:
    plain, fused, inputs = pair(name)
    inputs = [x.detach().contiguous(memory_format=torch.channels_last_3d) for x in inputs]
    y = fused(*inputs)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(y, plain(*inputs), atol=1e-5, rtol=1e-5)


NETWORKS: dict[str, tuple[str, Callable[[object], nn.Module], int]] = {
    "monai": ("monai.networks.nets", lambda nets: nets.AttentionUnet(2, 1, 2, (8, 16, 32), (2, 2)), 1),
    "monai, senet": (
        "monai.networks.nets",
        lambda nets: nets.SENet(2, 3, "se_resnet_bottleneck", (1, 1, 1, 1), 1, 16, num_classes=2),
        3,
    ),
    "smp": (
        "segmentation_models_pytorch",
        lambda smp: smp.Unet("mobileone_s4", encoder_weights=None),
        3,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network(name: str) -> None:
    package, build, channels = NETWORKS[name]
    pytest.importorskip(package.partition(".")[0])
    plain = build(importlib.import_module(package)).eval()
    fused = copy.deepcopy(plain)
    assert triton_attn.fuse(fused).fused
    x = torch.randn(1, channels, 64, 64)
    with torch.no_grad():
        assert torch.equal(fused(x), plain(x))
