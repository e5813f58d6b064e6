"""SimAM: a gate for every element, from how far it is from its channel's mean; no weights.

Source: Yang et al., "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
https://proceedings.mlr.press/v139/yang21o.html
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, positive
from ..tracing import node


class SimAM(AttentionBlock):
    """``x · σ(d / (4 (Σ_hw d / (HW − 1) + λ)) + ½)`` with ``d = (x − mean_hw x)²``.

    Args:
        in_channels: ``C``, the channels of the map, or None for any: nothing depends on it.
        e_lambda: λ, the regularisation.
        identity: change nothing at first: the gate becomes ``1 + γ (gate − 1)``, with one parameter γ that starts at 0.
        device, dtype: where and in what type that parameter is made.

    Raises:
        ValueError: ``in_channels`` is not a positive integer.
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        in_channels: int | None = None,
        *,
        e_lambda: float = 1e-4,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity)
        if in_channels is not None:
            positive("in_channels", in_channels)
        self.channels, self.e_lambda = in_channels, e_lambda
        gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype)) if identity else None
        self.register_parameter("gamma", gamma)

    def reset_parameters(self) -> None:
        """Start again."""
        if self.gamma is not None:
            nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, self.channels, self.gamma, shortcut)
        return add_shortcut(simam(x, self.gamma, e_lambda=self.e_lambda), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, self.channels, self.gamma)
        return {"pixel": simam_gate(x, self.gamma, self.e_lambda)}


def simam(x: Tensor, gamma: Tensor | None = None, *, e_lambda: float = 1e-4) -> Tensor:
    """``x · gate``, in the dtype of ``x``."""
    return x * simam_gate(x, gamma, e_lambda)


def simam_gate(x: Tensor, gamma: Tensor | None, e_lambda: float) -> Tensor:
    """The gate, ``(N, C, H, W)``; with ``gamma`` ``(1,)`` it is ``1 + gamma (gate − 1)``."""
    if isinstance(x, Proxy):
        return node(simam_gate, x, gamma, e_lambda)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # squares of 16 bits overflow
    squares = (wide - wide.mean((2, 3), keepdim=True)).square()
    others = max(x.shape[2] * x.shape[3] - 1, 1)  # a position alone has no variance
    variance = squares.sum((2, 3), keepdim=True) / others
    gate = torch.sigmoid(squares / (4 * (variance + e_lambda)) + 0.5).to(x.dtype)
    return gate if gamma is None else 1 + gamma.to(gate.dtype) * (gate - 1)
