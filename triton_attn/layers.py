"""Forwards alone, for who brings modules of their own: Hugging Face's ``kernels`` puts these into known classes.

A layer here has no constructor and no state. Its forward is that of the class of the same name in timm or torchvision,
whose children it uses: served by Triton where that serves, else the formula in plain PyTorch.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from . import backend
from .fusion import recipes
from .fusion.gates import ChannelGate
from .reference import channel_gate as plain


class SEModule(nn.Module):
    """timm's squeeze-and-excitation."""

    has_backward = True
    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, C, H, W)``, gated."""
        return _gated(recipes.TIMM_SE, self, x)


class EffectiveSEModule(nn.Module):
    """timm's effective squeeze-and-excitation, of one layer."""

    has_backward = True
    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, C, H, W)``, gated."""
        return _gated(recipes.TIMM_ESE, self, x)


class SqueezeExcite(nn.Module):
    """timm's squeeze-and-excitation of EfficientNet and MobileNetV3."""

    has_backward = True
    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, C, H, W)``, gated."""
        return _gated(recipes.TIMM_SQUEEZE_EXCITE, self, x)


class EcaModule(nn.Module):
    """timm's efficient channel attention."""

    has_backward = True
    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(N, C, H, W)``, gated."""
        return _gated(recipes.TIMM_ECA, self, x)


class SqueezeExcitation(nn.Module):
    """torchvision's squeeze-and-excitation."""

    has_backward = True
    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        """``input`` ``(N, C, H, W)``, gated."""
        return _gated(recipes.TORCHVISION_SE, self, input)


def _gated(recipe: ChannelGate, module: nn.Module, x: Tensor) -> Tensor:
    if not backend.is_plain(x) and (y := recipe(module, x)) is not None:
        return y
    return plain.gate_by(x, partial(recipe.network, module), pool=recipe.pool(module))
