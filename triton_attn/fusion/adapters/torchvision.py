"""torchvision: squeeze-and-excitation of EfficientNet, MobileNetV3, RegNet and MaxViT."""

from __future__ import annotations

from torch import nn
from torchvision.models.quantization.mobilenetv3 import QuantizableSqueezeExcitation
from torchvision.models.regnet import BottleneckTransform
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from ...reference.layers import is_touched
from .. import layers
from ..fused import Fused
from ..gates import Chain
from ..recipes import TORCHVISION_LAYERS, TORCHVISION_SE
from ..swap import register_adapter
from ..within import Within

# A Sequential of convolution, batch norm and activation, and no more.
layers.RUNS[Conv2dNormActivation] = layers.RUNS[nn.Sequential]


class Quantizable(Chain):
    """A multiplication by a module that may watch or round what comes out of it."""

    def obstacle(self, module: nn.Module) -> str | None:
        product = module._modules.get("skip_mul")
        watch = None if product is None else product._modules.get("activation_post_process")
        if type(product) is not nn.quantized.FloatFunctional or type(watch) is not nn.Identity or is_touched(watch):
            return "prepared for quantisation, or quantised"
        return super().obstacle(module)


QUANTIZABLE = Quantizable(*TORCHVISION_LAYERS, squeeze="avgpool")


@register_adapter
class FusedSqueezeExcitation(
    Fused, SqueezeExcitation, by=TORCHVISION_SE, read="f0913df463366213", helpers=("_scale",)
): ...


@register_adapter
class FusedQuantizableSqueezeExcitation(
    Fused,
    QuantizableSqueezeExcitation,
    by=QUANTIZABLE,
    read="9a9993940cae80ad",
    helpers=("_scale",),
): ...


@register_adapter
class FusedBottleneckTransform(Fused, BottleneckTransform, by=Within()): ...
