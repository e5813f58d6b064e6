"""Coordinate attention as the tutorial has it: a linear gate per channel, from its mean and its maximum.

The published block of that name (Hou, Zhou, Feng, https://arxiv.org/abs/2103.02907) pools rows and columns apart.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from .channel_gate import dense_gate
from .common import ReducingBlock, add_shortcut, check_map, hidden_width
from .identity import last_convolution
from .layers import POINTWISE, expects, plain_weights

LINEAR: dict[str, Any] = {"pool": "both", "hidden_activation": "none", "activation": "none"}


class CoordinateAttention(ReducingBlock):
    """``x · (f(mean_hw x) + f(max_hw x))`` with ``f = fc_out ∘ fc``: no nonlinearity and no sigmoid.

    Tied maxima share the gradient evenly (``torch.amax``).

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: ``fc`` has ``C // reduction`` output channels.
        identity: change nothing at first: ``fc_out``'s weight starts at 0 and its bias, which counts twice, at ½.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel.
    """

    def _build(self, in_channels: int, reduction: int, **where: Any) -> None:
        hidden = hidden_width(in_channels, reduction)
        self.fc = nn.Conv2d(in_channels, hidden, kernel_size=1, **where)
        self.fc_out = last_convolution(hidden, in_channels, self.identity, first=0.5, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expects(self.fc), shortcut)
        return add_shortcut(x * self.channel_gate(x), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, *expects(self.fc))
        return {"channel": self.channel_gate(x)}

    def channel_gate(self, x: Tensor) -> Tensor:
        """The gate of the map ``x``, ``(N, C, 1, 1)``."""
        weights = None if isinstance(x, Proxy) else self.weights()  # a trace keeps layers, not matrices made of them
        if weights is not None:  # on vectors, a product is several times as fast as a convolution
            return dense_gate(x, weights, **LINEAR)
        return self.network(x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))

    def network(self, mean: Tensor, peak: Tensor) -> Tensor:
        """The gate from the means and the maxima over positions, all ``(N, C, 1, 1)``."""
        return self.fc_out(self.fc(mean)) + self.fc_out(self.fc(peak))

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The gate network's parameters as matrices and vectors, in the order the functions take them.

        None if the two layers do more than these say, and are to be called.
        """
        found = self.parameters_as_they_are()
        return found and (found[0].flatten(1), found[1], found[2].flatten(1), found[3])

    def parameters_as_they_are(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The same with weights of four dimensions, as 1×1 convolutions have them."""
        return plain_weights(self, ("fc", POINTWISE), ("fc_out", POINTWISE))
