"""CBAM: a channel gate (SE), then a spatial gate from the mean and the maximum over channels.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", https://arxiv.org/abs/1807.06521
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook

from .channel_gate import activate, channel_gate
from .common import ReducingBlock, add_shortcut, check_map
from .identity import last_convolution
from .layers import expects, is_touched, plain_weights, same_size
from .parameters import Dense, check_parameter
from .se import SEBlock

SPATIAL = same_size(7, 7)


def pooled_channels(u: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the maximum over channels, ``(N, 1, H, W)`` each. Of tied maxima the first has the gradient."""
    # Where there is none, amax is the same, several times as fast on a CPU. A trace runs in whatever mode it is called.
    traced = isinstance(u, Proxy) or torch.jit.is_tracing()
    differentiable = traced or (torch.is_grad_enabled() and u.requires_grad)
    top = u.max(dim=1, keepdim=True).values if differentiable else u.amax(dim=1, keepdim=True)
    return u.mean(1, keepdim=True), top


def spatial_gate(u: Tensor, conv_weight: Tensor, conv_bias: Tensor, activation: str = "sigmoid") -> Tensor:
    """``σ(conv7×7([mean_c u, max_c u]))`` of ``u`` ``(N, C, H, W)``, as ``(N, 1, H, W)``."""
    pooled = torch.cat(pooled_channels(u), dim=1)
    return activate(F.conv2d(pooled, conv_weight, conv_bias, padding=3), activation)


def cbam(
    x: Tensor,
    channel: Dense,
    spatial: tuple[Tensor, Tensor],
    shortcut: Tensor | None = None,
    *,
    activation: str = "sigmoid",
) -> Tensor:
    """CBAM as a function, in plain PyTorch. Shapes as in :func:`triton_attn.functional.cbam`.

    Args:
        x: the map.
        channel, spatial: the parameters of the channel gate and of the convolution, each in the functions' order.
        shortcut: added before a last ReLU.
        activation: of both gates.
    """
    u = channel_gate(x, channel, activation=activation)
    return add_shortcut(u * spatial_gate(u, *spatial, activation), shortcut)


def se_weights(gate: nn.Module, activation: str) -> tuple[Tensor, Any, Tensor, Any] | None:
    """The parameters of a channel gate that stands in another block; None if it does more than these say."""
    if not is_gate(gate) or gate.one_layer or (gate.hidden_activation, gate.activation) != ("relu", activation):
        return None
    return gate.weights()


def expected_by(gate: nn.Module) -> tuple[int | None, Tensor | None]:
    """:func:`.layers.expects` of a channel gate in another block."""
    return expects(gate.first()) if isinstance(gate, SEBlock) else (None, None)


def is_gate(gate: nn.Module) -> TypeGuard[SEBlock]:
    """Whether a channel gate in another block is an SE block and nothing more, whose call is its network's of means."""
    return type(gate) is SEBlock and gate.pool == "mean" and not is_touched(gate) and not _has_any_global_hook()


def check_spatial_gate(conv_weight: Tensor, conv_bias: Tensor, weight1: Tensor) -> None:
    """Raise a ValueError or TypeError that names the argument unless the convolution fits the bottleneck."""
    check_parameter("conv_weight", conv_weight, (1, 2, 7, 7), weight1)
    check_parameter("conv_bias", conv_bias, (1,), weight1)


class CBAM(ReducingBlock):
    """``u = SE(x)``, then ``u · σ(conv7×7([mean_c u, max_c u]))``.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the channel gate's hidden layer has ``C // reduction`` channels.
        identity: change nothing at first: both gates are ``2σ``, and their last layers start at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """

    _gate = "sigmoid"

    def _build(self, in_channels: int, reduction: int, **where: Any) -> None:
        self.channel_attention = SEBlock(in_channels, reduction, identity=self.identity, **where)
        self.spatial_attention = last_convolution(2, 1, self.identity, size=7, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, expected_by(self.channel_attention)[0], expects(self.spatial_attention)[1], shortcut)
        u = self.channel_attention(x)
        return add_shortcut(u * self.spatial_gate(u), shortcut)

    def spatial_gate(self, u: Tensor) -> Tensor:
        """The spatial gate of the channel-gated map ``u``, ``(N, 1, H, W)``."""
        return self.spatial_network(*pooled_channels(u))

    def spatial_network(self, mean: Tensor, top: Tensor) -> Tensor:
        """The spatial gate from the mean and the maximum over channels, all ``(N, 1, H, W)``."""
        return activate(self.spatial_attention(torch.cat([mean, top], dim=1)), self.activation)

    def weights(self) -> tuple[tuple[Tensor, Any, Tensor, Any], tuple[Tensor, Tensor]] | None:
        """The channel gate's parameters and the convolution's, two tuples, in the order the functions take them.

        None if there is a layer that does more than these say, so that each is to be called.
        """
        channel = se_weights(self.channel_attention, self.activation)
        spatial = plain_weights(self, ("spatial_attention", SPATIAL))
        return None if channel is None or spatial is None else (channel, spatial)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        channel = self.channel_attention.attention_maps(x)["channel"]
        return {"channel": channel, "spatial": self.spatial_gate(x * channel)}
