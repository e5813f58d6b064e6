"""ResNet-18 to 152 with attention sites, under torchvision's parameter names.

Source: He et al., "Deep Residual Learning", https://arxiv.org/abs/1512.03385; the bottleneck has its stride on the
3×3 convolution, as in torchvision.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import ALL, Attention, Factory, look_up, sites_of
from .weights import Weights, load_torchvision, load_weights


class Attended(nn.Module):
    """What every residual block does once its branch is computed: attend, add the shortcut, ReLU, attend to that."""

    attention: nn.Module | None
    outplanes: int
    takes_shortcut: bool
    after: nn.ModuleDict | None

    def attend(self, channels: int, attention: Factory | None) -> None:
        self.outplanes, self.after = channels, None
        self.attention = None if attention is None else attention(channels)
        # A block that takes the shortcut does the rest in the same pass over memory.
        self.takes_shortcut = (
            self.attention is not None and "shortcut" in inspect.signature(self.attention.forward).parameters
        )

    def attend_after(self, attention: Factory) -> None:
        """Have attention behind the last ReLU; its keys have the part ``attention`` as all of attention's."""
        self.after = nn.ModuleDict({"attention": attention(self.outplanes)})

    def tail(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        y = self._added(branch, shortcut)
        return y if self.after is None else self.after["attention"](y)

    def _added(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        if self.attention is None:
            return F.relu(branch + shortcut, inplace=True)
        if self.takes_shortcut:
            return self.attention(branch, shortcut=shortcut)
        return F.relu(self.attention(branch) + shortcut)


class BasicBlock(Attended):
    """Two 3×3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        attention: Factory | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample
        self.attend(planes, attention)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, inplanes, H, W)``; returns ``(N, planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.tail(self.bn2(self.conv2(out)), shortcut)


class Bottleneck(Attended):
    """1×1, 3×3 and 1×1 convolutions and a shortcut (ResNet-50, 101 and 152)."""

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        attention: Factory | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = downsample
        self.attend(planes * self.expansion, attention)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, inplanes, H, W)``; returns ``(N, 4 · planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return self.tail(self.bn3(self.conv3(out)), shortcut)


ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A ResNet whose sites may hold attention: after the stem, after each stage, and in every residual block.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: how many of them in each of the four stages.
        num_classes: the width of the last layer.
        attention: from site (``"stem"``, ``"layer1"`` … ``"layer4"``, ``"paper"``, ``"block"``) to
            ``channels -> nn.Module``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Iterable[int],
        num_classes: int = 1000,
        attention: Mapping[str, Factory] | None = None,
    ) -> None:
        super().__init__()
        attention = dict(attention or {})
        within, paper = attention.pop("block", None), attention.pop("paper", None)
        depth1, depth2, depth3, depth4 = layers
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, depth1, 1, within)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depth2, 2, within)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depth3, 2, within)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depth4, 2, within)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        if paper is not None:
            for stage, most in ((self.layer2, 2), (self.layer3, 3)):
                for place in (stage[i] for i in paper_places(len(stage), most)):
                    assert isinstance(place, Attended)
                    place.attend_after(paper)
        channels = {"stem": 64} | {f"layer{i + 1}": (64 << i) * block.expansion for i in range(4)}
        self.attention = nn.ModuleDict({site: make(channels[site]) for site, make in attention.items()})
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and "attention" not in name.split("."):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = self._attend("stem", self.relu(self.bn1(self.conv1(x))))
        x = self.maxpool(x)
        x = self._attend("layer1", self.layer1(x))
        x = self._attend("layer2", self.layer2(x))
        x = self._attend("layer3", self.layer3(x))
        x = self._attend("layer4", self.layer4(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def _attend(self, site: str, x: Tensor) -> Tensor:
        return self.attention[site](x) if site in self.attention else x


def paper_places(depth: int, most: int) -> list[int]:
    """Behind which blocks of a stage the non-local networks attend: ``most`` of them, evenly, and no two side by side.

    Source: Wang et al., "Non-local Neural Networks", https://arxiv.org/abs/1711.07971: five in a ResNet-50 (layer2.1
    and 3; layer3.1, 3 and 5) and in a ResNet-101 (layer2.1 and 3; layer3.6, 13 and 20). Other depths go likewise.
    """
    count = max(1, min(most, depth // 2))
    return [(i + 1) * (depth // count) - 1 for i in range(count)]


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inplanes: int,
    planes: int,
    depth: int,
    stride: int,
    attention: Factory | None,
) -> nn.Sequential:
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, outplanes, 1, stride=stride, bias=False), nn.BatchNorm2d(outplanes)
        )
    first = block(inplanes, planes, stride, downsample, attention)
    rest = [block(outplanes, planes, attention=attention) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def build_resnet(
    name: str,
    attention: Attention | Mapping[str, Attention] | None = None,
    *,
    where: str | Iterable[str] = ("stem", "layer4"),
    attention_kwargs: Mapping[str, Any] | None = None,
    weights: Weights = None,
    num_classes: int = 1000,
    blocks: Mapping[str, type[nn.Module]] = ALL,
) -> ResNet:
    """Build a ResNet by name; the arguments are those of :func:`triton_attn.resnet50`.

    ``blocks`` says which class a name of a block stands for: the plain twins by default.
    """
    look_up("model", name, ARCHITECTURES)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    block, layers = ARCHITECTURES[name]
    model = ResNet(block, layers, num_classes, sites_of(attention, where, attention_kwargs, blocks))
    if weights is not None:
        load_weights(model, weights, name)
    return model


class ResNetWithAttention(nn.Module):
    """The tutorial's model: ResNet-50 with attention after the stem's ReLU (64 channels) and after layer4 (2048).

    Args:
        attention_cls: a block class, fast or plain, or any callable ``channels -> nn.Module``.
        pretrained: start from torchvision's ImageNet weights. They are downloaded on first use; without a network
            pass ``pretrained=False`` and load a file into ``base_model``.

    Raises:
        ModuleNotFoundError: ``pretrained=True`` without torchvision.
        RuntimeError: ``pretrained=True`` and the weights could not be downloaded.
    """

    def __init__(self, attention_cls: Callable[[int], nn.Module], pretrained: bool = True) -> None:
        super().__init__()
        self.base_model = build_resnet("resnet50")
        if pretrained:
            self.base_model.load_state_dict(load_torchvision("DEFAULT", "resnet50"))
        self.attention_layer1 = attention_cls(64)
        self.attention_layer2 = attention_cls(2048)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to logits ``(N, 1000)``."""
        base = self.base_model
        x = self.attention_layer1(base.relu(base.bn1(base.conv1(x))))
        x = base.layer4(base.layer3(base.layer2(base.layer1(base.maxpool(x)))))
        x = self.attention_layer2(x)
        return base.fc(torch.flatten(base.avgpool(x), 1))
