"""Networks of other libraries, small, with attention of every kind that is known."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torchvision
from timm.models import resnet, senet, tresnet
from torch import nn
from torchvision.models import efficientnet, mobilenetv3

Build = Callable[[], nn.Module]


def timm_resnet(attention: str | type[nn.Module], block: type[nn.Module] = resnet.BasicBlock, **options) -> nn.Module:
    """A narrow ResNet, of one block to a stage."""
    return resnet.ResNet(
        block, (1,) * 4, num_classes=3, channels=(16, 16, 24, 32), block_args={"attn_layer": attention}, **options
    )


def timm_senet(block: type[nn.Module]) -> nn.Module:
    return senet.SENet(
        block, (1, 1, 1, 1), groups=1, reduction=16, inplanes=64, downsample_kernel_size=1, num_classes=3, drop_rate=0.0
    )


def torchvision_mobilenet() -> nn.Module:
    settings, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return mobilenetv3.MobileNetV3(settings[:5], last, num_classes=3)


def torchvision_efficientnet() -> nn.Module:
    settings, _ = efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.1)
    return efficientnet.EfficientNet(
        settings[:4], dropout=0.0, stochastic_depth_prob=0.0, num_classes=3, last_channel=32
    )


def drawn(build: Build) -> Build:
    """With batch norms that do something: at first many a branch, and its attention with it, is multiplied by 0."""

    def built() -> nn.Module:
        model = build()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    for value in (module.weight, module.running_var):
                        value.uniform_(0.5, 1.5)
                    for value in (module.bias, module.running_mean):
                        value.uniform_(-0.5, 0.5)
        return model

    return built


_SMALL: dict[str, Build] = {
    "timm se, basic blocks": lambda: timm_resnet("se"),
    "timm se, bottlenecks": lambda: timm_resnet("se", resnet.Bottleneck),
    "timm eca": lambda: timm_resnet("eca"),
    "timm eca, two convolutions": lambda: timm_resnet("ecam"),
    "timm eca, circular": lambda: timm_resnet("ceca"),
    "timm effective se": lambda: timm_resnet("ese"),
    "timm efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=3),
    "timm byobnet": lambda: timm.create_model("test_byobnet", num_classes=3),
    "timm nfnet": lambda: timm.create_model("test_nfnet", num_classes=3),
    "timm senet, basic blocks": lambda: timm_senet(senet.SEResNetBlock),
    "timm tresnet": lambda: tresnet.TResNet((1, 1, 1, 1), num_classes=3, width_factor=0.25),
    "torchvision mobilenet": torchvision_mobilenet,
    "torchvision efficientnet": torchvision_efficientnet,
}
SMALL = {name: drawn(build) for name, build in _SMALL.items()}
"""By what is in them."""

_FULL: dict[str, Build] = {
    **{
        f"timm {name}": lambda name=name: timm.create_model(name, num_classes=10)
        for name in (
            "seresnet18",
            "ecaresnet26t",
            "efficientnet_b0",
            "mobilenetv3_small_100",
            "regnety_004",
            "rexnet_100",
            "ese_vovnet19b_dw",
            "legacy_seresnet18",
        )
    },
    **{
        f"torchvision {name}": lambda name=name: torchvision.models.get_model(name, weights=None, num_classes=10)
        for name in ("mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf")
    },
}
FULL = {name: drawn(build) for name, build in _FULL.items()}
"""Published architectures at their full width: one for each class of attention, and the smallest that has it."""
