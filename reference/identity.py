"""Blocks that change nothing at first: ``identity=True``.

A gate σ becomes 2σ, which is exactly 1 where its logit is 0, and the layer that makes the logits starts at zero. So
does the last layer of what is added to the map. No parameter is added, and no pass over the map; from the first step
on that layer learns, and then the rest. What lies in a trained network therefore leaves its output as it was, bit by
bit.

Networks initialise their layers by walking over them. Such walks choose by type (``isinstance(m, nn.Conv2d)``) or call
``reset_parameters``: the layers below are none of the types that walks look for, and start at zero again when reset.
Whoever fills every parameter, of whatever kind, undoes it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .common import Device, DType


class ZeroLayer(nn.Module):
    """A last layer that is zero at first: dense, or a convolution that keeps the size, as its weight's shape says.

    Args:
        weight: the shape of the weight: ``(out, in)``, ``(out, in, k)`` or ``(out, in, k, k)``.
        bias: what the bias starts at, or None for no bias.
        device, dtype: where and in what type the parameters are made.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, weight: tuple[int, ...], bias: float | None = 0.0, *, device: Device = None, dtype: DType = None
    ) -> None:
        super().__init__()
        self.first = bias
        self.weight = nn.Parameter(torch.empty(weight, device=device, dtype=dtype))
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(torch.empty(weight[0], device=device, dtype=dtype))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            assert self.first is not None
            nn.init.constant_(self.bias, self.first)

    def forward(self, x: Tensor) -> Tensor:
        """What an ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` does."""
        if self.weight.dim() == 2:
            return F.linear(x, self.weight, self.bias)
        convolve = F.conv1d if self.weight.dim() == 3 else F.conv2d
        return convolve(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, bias={self.bias is not None}"


class ZeroBatchNorm2d(_BatchNorm):
    """A batch norm of maps whose weight and bias start at zero, so that it gives zero; no ``nn.BatchNorm2d``."""

    def reset_parameters(self) -> None:
        """Start again."""
        self.reset_running_stats()
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"input must be 4-D, (N, {self.num_features}, H, W), got shape {tuple(input.shape)}")


def last_linear(channels: int, out: int, identity: bool, *, bias: bool = True, **where: Any) -> nn.Linear | ZeroLayer:
    """A gate network's last dense layer."""
    if identity:
        return ZeroLayer((out, channels), 0.0 if bias else None, **where)
    return nn.Linear(channels, out, bias=bias, **where)


def last_convolution(
    channels: int, out: int, identity: bool, *, size: int = 1, bias: bool = True, first: float = 0.0, **where: Any
) -> nn.Conv2d | ZeroLayer:
    """A gate network's last convolution, which keeps the map's size; ``first`` is what a bias at zero starts at."""
    if identity:
        return ZeroLayer((out, channels, size, size), first if bias else None, **where)
    return nn.Conv2d(channels, out, size, padding=size // 2, bias=bias, **where)


def last_norm(
    channels: int, identity: bool, *, momentum: float = 0.1, **where: Any
) -> nn.BatchNorm2d | ZeroBatchNorm2d:
    """A batch norm behind the last layer."""
    kind = ZeroBatchNorm2d if identity else nn.BatchNorm2d
    return kind(channels, momentum=momentum, **where)
