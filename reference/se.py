"""Squeeze-and-excitation: one gate per channel, from the mean of every channel.

Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .activations import CHOICES, HIDDEN
from .channel_gate import POOLS, activate, check_choice, pooled
from .common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width, positive
from .identity import last_linear
from .layers import DENSE, expects, is_touched, plain_weights


class SEBlock(AttentionBlock):
    """``x · σ(fc2(relu(fc1(mean_hw x))))``.

    Args:
        in_channels: ``C``, the channels of the map.
        reduction: the hidden layer has ``C // reduction`` channels.
        hidden_channels: how many it has, whatever ``reduction`` says.
        bias: whether the two layers have biases.
        hidden_activation: in place of ``relu``: ``"silu"``, ``"hardswish"``, ``"gelu"``, ``"gelu_tanh"``,
            ``"leaky_relu"`` or ``"none"``.
        gate: in place of σ: ``"hard_sigmoid"`` (``relu6(z + 3) / 6``) or ``"none"``.
        norm: whether there is a batch norm behind ``fc1``. In training it takes more than one image.
        pool: over positions, in place of the mean: ``"max"``, ``"half"`` of each added up, or ``"both"``, each of which
            goes through the layers by itself; then the logits are added.
        one_layer: a single layer ``fc``, C → C, in place of the two (eSE).
        identity: change nothing at first: the gate is ``2σ`` (twice the hard one, ``1 + z``) and ``fc2`` starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: ``reduction`` leaves no hidden channel, an activation or a pool of no known name, or one layer is to
            have what is between two.
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        bias: bool = True,
        hidden_activation: str = "relu",
        gate: str = "sigmoid",
        norm: bool = False,
        pool: str = "mean",
        one_layer: bool = False,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        check_choice("hidden_activation", hidden_activation, tuple(HIDDEN))
        check_choice("gate", gate, CHOICES)
        check_choice("pool", pool, POOLS)
        super().__init__(identity, gate)
        self.hidden_activation, self.pool, self.one_layer = hidden_activation, pool, one_layer
        self.norm = None
        where: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        if one_layer:
            if hidden_channels is not None or norm:
                raise ValueError(
                    "hidden_channels and norm are of two layers, and must be None and False for one_layer=True, got "
                    f"{hidden_channels!r} and {norm!r}"
                )
            positive("in_channels", in_channels)
            self.fc = last_linear(in_channels, in_channels, identity, **where)
            return
        hidden = hidden_width(in_channels, reduction, hidden_channels)
        self.fc1 = nn.Linear(in_channels, hidden, **where)
        self.norm = nn.BatchNorm1d(hidden, device=device, dtype=dtype) if norm else None
        self.fc2 = last_linear(hidden, in_channels, identity, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the gated map, or ``relu(gated + shortcut)``."""
        check_map(x, *expects(self.first()), shortcut)
        return add_shortcut(x * self.channel_gate(x), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        check_map(x, *expects(self.first()))
        return {"channel": self.channel_gate(x)}

    def channel_gate(self, x: Tensor) -> Tensor:
        """The gate of the map ``x``, ``(N, C, 1, 1)``."""
        if self.pool == "mean":
            return self.network(x.mean((2, 3), keepdim=True))
        return self.network(*(vector.unsqueeze(-1).unsqueeze(-1) for vector in pooled(x, self.pool)))

    def network(self, first: Tensor, *others: Tensor) -> Tensor:
        """The gate from what was pooled over positions, all ``(N, C, 1, 1)``."""
        logits = self.logits(first.flatten(1))
        for vector in others:
            logits = logits + self.logits(vector.flatten(1))
        return activate(logits, self.activation).unsqueeze(-1).unsqueeze(-1)

    def logits(self, vector: Tensor) -> Tensor:
        """What the layers make of a pooled vector, both ``(N, C)``."""
        if self.one_layer:
            return self.fc(vector)
        hidden = self.fc1(vector)
        hidden = hidden if self.norm is None else self.norm(hidden)
        return self.fc2(HIDDEN[self.hidden_activation](hidden))

    def first(self) -> nn.Module:
        """The layer that sees what is pooled."""
        return self.fc if self.one_layer else self.fc1

    def weights(self) -> tuple[Tensor, Any, Any, Any] | None:
        """The gate network's parameters, in the order the functions take them, None for what there is not.

        A batch norm is folded into the first, in evaluation. None if the layers do more than these say, as a batch norm
        in training does, and are to be called.
        """
        if self.one_layer:
            single: Any = plain_weights(self, ("fc", DENSE))
            return None if single is None else (*single, None, None)
        found: Any = plain_weights(self, ("fc1", DENSE), ("fc2", DENSE))
        return found if found is None or self.norm is None else self._folded(*found)

    def _folded(self, weight1: Tensor, bias1: Tensor | None, *others: Any) -> Any:
        norm = self.norm
        if type(norm) is not nn.BatchNorm1d or is_touched(norm) or norm.training:
            return None
        own: Any = norm.running_mean, norm.running_var, norm.weight, norm.bias
        if any(each is None for each in own):
            return None
        mean, variance, weight, bias = own
        wide = torch.promote_types(weight1.dtype, torch.float32)
        scale = weight.to(wide) * (variance.to(wide) + norm.eps).rsqrt()
        shift = mean.neg() if bias1 is None else bias1 - mean
        folded = weight1 * scale[:, None], shift * scale + bias
        return *(each.to(weight1.dtype) for each in folded), *others

    def extra_repr(self) -> str:
        options = f"hidden_activation={self.hidden_activation!r}, gate={self.activation!r}"
        standard = (self.hidden_activation, self.activation) == ("relu", "sigmoid")
        pool = "" if self.pool == "mean" else f"pool={self.pool!r}"
        return ", ".join(each for each in ("" if standard else options, pool, super().extra_repr()) if each)
