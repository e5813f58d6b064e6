"""ResNet-18 to 152 with attention sites, under torchvision's parameter names.

Source: He et al., "Deep Residual Learning", https://arxiv.org/abs/1512.03385; the bottleneck has its stride on the
3×3 convolution, as in torchvision.
"""

from __future__ import annotations

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .common import AttentionBlock
from .layers import is_touched
from .registry import ALL, Attention, Factory, look_up, sites_of
from .weights import Weights, load_torchvision, load_weights, present_keys


class Attended(nn.Module):
    """What every residual block does once its branch is computed: attend, add the shortcut, ReLU, attend to that."""

    expansion: int

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        attention: Factory | None = None,
    ) -> None:
        super().__init__()
        self._build(inplanes, planes, stride)
        self.downsample = downsample
        self.attend(planes * self.expansion, attention)

    def _build(self, inplanes: int, planes: int, stride: int) -> None:
        """The layers of the branch."""
        raise NotImplementedError

    def attend(self, channels: int, attention: Factory | None) -> None:
        self.outplanes = channels
        self.attention = None if attention is None else attention(channels)
        self.after: nn.Module | None = None
        # A block that takes the shortcut does the rest in the same pass over memory.
        self.takes_shortcut = (
            self.attention is not None and "shortcut" in inspect.signature(self.attention.forward).parameters
        )

    def attend_after(self, attention: Factory) -> None:
        """Have attention behind the last ReLU; its keys have the part ``attention`` as all of attention's."""
        self.after = site(attention=attention(self.outplanes))

    def normed_tail(self, norm: nn.Module, branch: Tensor, shortcut: Tensor) -> Tensor:
        """The tail of ``norm(branch)``: where attention takes the batch norm in, its map is never written."""
        attention = self.attention
        if isinstance(attention, AttentionBlock) and not isinstance(branch, Proxy) and not is_touched(attention):
            y = attention.behind(norm, branch, shortcut)
            if y is not None:
                return y if self.after is None else self.after(y)
        return self.tail(norm(branch), shortcut)

    def tail(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        # As torch.jit.script takes it: nested, since what follows a return is compiled even where nothing gets there.
        if self.attention is None:
            y = F.relu(branch + shortcut, inplace=True)
        elif self.takes_shortcut:
            y = self.attention(branch, shortcut=shortcut)
        else:
            y = F.relu(self.attention(branch) + shortcut)
        if self.after is not None:
            y = self.after(y)
        return y


class BasicBlock(Attended):
    """Two 3×3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1

    def _build(self, inplanes: int, planes: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, inplanes, H, W)``; returns ``(N, planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.conv2(out)
        # A module is no argument in TorchScript, which does not look behind the else.
        if torch.jit.is_scripting():
            y = self.tail(self.bn2(out), shortcut)
        else:
            y = self.normed_tail(self.bn2, out, shortcut)
        return y


class Bottleneck(Attended):
    """1×1, 3×3 and 1×1 convolutions and a shortcut (ResNet-50, 101 and 152)."""

    expansion = 4

    def _build(self, inplanes: int, planes: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, inplanes, H, W)``; returns ``(N, 4 · planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.conv3(out)
        if torch.jit.is_scripting():
            y = self.tail(self.bn3(out), shortcut)
        else:
            y = self.normed_tail(self.bn3, out, shortcut)
        return y


STAGES = ("layer1", "layer2", "layer3", "layer4")
PAPER = {"layer2": 2, "layer3": 3}
"""How many places of a stage the non-local networks attend behind, at most."""

ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A ResNet whose sites may hold attention: after the stem, after each stage, and in every residual block.

    Attention is a child where it runs: behind the stem's ReLU, as a stage's last child, inside of a residual block. So
    who takes the network apart, child by child, takes the attention with it, and a stage's output is the attended one.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: how many of them in each of the four stages.
        num_classes: the width of the last layer.
        attention: from site (``"stem"``, ``"layer1"`` … ``"layer4"``, ``"paper"``, ``"block"``) to
            ``channels -> nn.Module``.

    Attributes:
        inplanes: the channels of the last map, by torchvision's name for them.
        num_features: the same, by timm's.
        feature_info: of the five maps of :meth:`features`, by timm's names: ``num_chs`` channels, ``reduction`` of
            height and width, and the ``module`` that the map comes out of.
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
        within = attention.pop("block", None)
        depth1, depth2, depth3, depth4 = layers
        widths = [(64 << i) * block.expansion for i in range(4)]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.attention: nn.Module | None
        self.register_module("attention", None)  # whose place among the children is here
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, depth1, 1, within)
        self.layer2 = _stage(block, widths[0], 128, depth2, 2, within)
        self.layer3 = _stage(block, widths[1], 256, depth3, 2, within)
        self.layer4 = _stage(block, widths[2], 512, depth4, 2, within)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        self.inplanes = self.num_features = widths[3]
        self._attend(attention, dict(zip(STAGES, widths, strict=True)))
        modules = "relu" if self.attention is None else "attention", *STAGES
        self.feature_info = [
            {"num_chs": channels, "reduction": 2 << i, "module": module}
            for i, (channels, module) in enumerate(zip([64, *widths], modules, strict=True))
        ]
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and "attention" not in name.split("."):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.register_load_state_dict_pre_hook(_read_earlier_keys)

    def _attend(self, attention: dict[str, Factory], widths: Mapping[str, int]) -> None:
        """Put attention at its sites. What else has weights is made by then: a seed gives it the same ones as ever."""
        paper = attention.pop("paper", None)
        if paper is not None:
            for name, most in PAPER.items():
                stage = getattr(self, name)
                for place in paper_places(len(stage), most):
                    stage[place].attend_after(paper)
        for where, make in attention.items():
            if where == "stem":
                self.attention = site(stem=make(64))
            else:
                getattr(self, where).add_module("attention", make(widths[where]))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to the last map ``(N, num_features, H / 32, W / 32)``, behind its attention."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(self.forward_stem(x))))))

    def forward_stem(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to the stem's map ``(N, 64, H / 2, W / 2)``, behind its attention."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.attention is not None:
            x = self.attention(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """The last map to logits."""
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def features(self, x: Tensor) -> list[Tensor]:
        """Images ``(N, 3, H, W)`` to the maps behind the stem and every stage, and the attention there.

        They have 1/2, 1/4 … 1/32 of the image's height and width.
        """
        stem = self.forward_stem(x)
        layer1 = self.layer1(self.maxpool(stem))
        layer2 = self.layer2(layer1)
        layer3 = self.layer3(layer2)
        return [stem, layer1, layer2, layer3, self.layer4(layer3)]

    def sites(self) -> dict[str, nn.Module]:
        """The attention outside of the residual blocks, by site: ``"stem"``, ``"layer1"`` … ``"layer4"``."""
        found = {} if self.attention is None else dict(self.attention.named_children())
        for stage in STAGES:
            own = dict(getattr(self, stage).named_children())
            found |= {stage: own["attention"]} if "attention" in own else {}
        return found


def site(**module: nn.Module) -> nn.Sequential:
    """One module, under the name that its keys have there."""
    return nn.Sequential(OrderedDict(module))


def _read_earlier_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded, in place: keys that earlier versions had."""
    own = itertools.chain(module.named_parameters(), module.named_buffers())
    found = present_keys(state, {prefix + name for name, _ in own})
    state.clear()
    state.update(found)


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
        return self.base_model.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to the last map ``(N, 2048, H / 32, W / 32)``, behind its attention."""
        base = self.base_model
        x = self.attention_layer1(base.relu(base.bn1(base.conv1(x))))
        x = base.layer4(base.layer3(base.layer2(base.layer1(base.maxpool(x)))))
        return self.attention_layer2(x)
