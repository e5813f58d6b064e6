"""timm's own doors: networks of timm with blocks of ours in the place of its attention."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import triton_attn

timm = pytest.importorskip("timm")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def blocks(model: nn.Module, cls: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, cls)]


@pytest.mark.parametrize("layer", [triton_attn.SEBlock, triton_attn.ECABlock, triton_attn.attn_layer("eca")])
def test_a_class_in_a_resnet(layer) -> None:
    model = timm.create_model("resnet18", num_classes=3, block_args={"attn_layer": layer}).eval()
    found = blocks(model, triton_attn.SEBlock if layer is triton_attn.SEBlock else triton_attn.ECABlock)
    assert len(found) == 8
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_in_place_of_squeeze_and_excitation() -> None:
    """With timm's ratios and activation: as many parameters as with timm's own."""
    model = timm.create_model("efficientnet_b0", num_classes=3, se_layer=triton_attn.attn_layer("se")).eval()
    plain = timm.create_model("efficientnet_b0", num_classes=3)
    found = blocks(model, triton_attn.SEBlock)
    assert len(found) == 16
    assert {block.hidden_activation for block in found} == {"silu"}
    assert parameters(model) == parameters(plain)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_timms_factory_passes_its_arguments_on() -> None:
    create = partial(timm.layers.create_attn, triton_attn.attn_layer("se"))
    assert create(64).fc1.out_features == 4
    assert create(64, rd_ratio=0.25).fc1.out_features == 16
    assert create(64, rd_ratio=0.001).fc1.out_features == 1
    assert create(64, rd_ratio=0.25, rd_channels=6).fc1.out_features == 6
    made = create(64, rd_channels=6, act_layer=nn.GELU, device="meta", dtype=torch.bfloat16)
    assert made.hidden_activation == "gelu"
    assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("swish", "silu"),
        ("hard_swish", "hardswish"),
        ("identity", "none"),
        ("gelu_tanh", "gelu_tanh"),
        (nn.ReLU, "relu"),
        (timm.layers.GELU, "gelu"),
        (nn.Identity, "none"),
        (partial(nn.GELU, approximate="tanh"), "gelu_tanh"),
    ],
)
def test_activations(layer, name: str) -> None:
    assert triton_attn.attn_layer("se")(32, act_layer=layer).hidden_activation == name


def test_what_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"act_layer must be one of relu, .* or make one of these, got 'mish'"):
        triton_attn.attn_layer("se")(32, act_layer="mish")
    with pytest.raises(ValueError, match=r"unknown attention 'see'"):
        triton_attn.attn_layer("see")
    with pytest.raises(TypeError, match=r"norm_layer"):
        triton_attn.attn_layer("se")(32, norm_layer=nn.BatchNorm2d)


def test_blocks_without_a_choice_take_what_they_can() -> None:
    assert triton_attn.attn_layer("cbam")(64, rd_ratio=0.25, act_layer=nn.SiLU).channel_attention.fc1.out_features == 16
    assert isinstance(triton_attn.attn_layer("nonlocal")(16, rd_ratio=0.5), triton_attn.NonLocalBlock)
    assert triton_attn.attn_layer("se", hidden_activation="none")(32, act_layer=nn.SiLU).hidden_activation == "none"
