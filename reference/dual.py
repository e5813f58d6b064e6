"""Dual attention as the tutorial has it: SE, then CBAM.

The published DANet (Fu et al., https://arxiv.org/abs/1809.02983) is another block.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .cbam import CBAM, cbam, expected_by, se_weights
from .channel_gate import channel_gate
from .common import ReducingBlock, check_map
from .layers import is_touched
from .parameters import Dense
from .se import SEBlock


def dual(
    x: Tensor,
    first: Dense,
    second: Dense,
    spatial: tuple[Tensor, Tensor],
    shortcut: Tensor | None = None,
    *,
    activation: str = "sigmoid",
) -> Tensor:
    """Dual attention as a function, in plain PyTorch: a channel gate, then :func:`.cbam.cbam` with the rest."""
    u = channel_gate(x, first, activation=activation)
    return cbam(u, second, spatial, shortcut, activation=activation)


class DualAttentionBlock(ReducingBlock):
    """``CBAM(SE(x))``.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: each channel gate's hidden layer has ``C // reduction`` channels.
        identity: change nothing at first: the three gates are ``2σ``, and their last layers start at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """

    def _build(self, in_channels: int, reduction: int, **where: Any) -> None:
        self.channel_attention = SEBlock(in_channels, reduction, identity=self.identity, **where)
        self.spatial_attention = CBAM(in_channels, reduction, identity=self.identity, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expected_by(self.channel_attention), shortcut)
        return self.spatial_attention(self.channel_attention(x), shortcut)

    def weights(
        self,
    ) -> tuple[tuple[Tensor, Any, Tensor, Any], tuple[Tensor, Any, Tensor, Any], tuple[Tensor, Tensor]] | None:
        """The parameters of the three gates, three tuples, in the order the functions take them.

        None if there is a layer that does more than these say, so that each is to be called.
        """
        second = self.spatial_attention
        if not self.has_plain_cbam():
            return None
        first, rest = se_weights(self.channel_attention, second.activation), second.weights()
        return None if first is None or rest is None else (first, *rest)

    def has_plain_cbam(self) -> bool:
        """Whether the second half is a CBAM and nothing more, whose call is that of its layers."""
        return type(self.spatial_attention) is CBAM and not is_touched(self.spatial_attention)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """``"channel"`` is the product of the two channel gates, ``"spatial"`` CBAM's gate."""
        first = self.channel_attention.attention_maps(x)["channel"]
        second = self.spatial_attention.attention_maps(x * first)
        return {"channel": first * second["channel"], "spatial": second["spatial"]}
