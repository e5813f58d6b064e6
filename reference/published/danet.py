"""DANet: attention between positions, attention between channels, and the head that adds them.

Source: Fu et al., "Dual Attention Network for Scene Segmentation", https://arxiv.org/abs/1809.02983; where the paper
and its code differ (the sign of the channels' scores), this is the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width, positive
from ..identity import last_convolution
from ..layers import POINTWISE, expects, plain_weights
from ..non_local import nonlocal_attention
from .seen_from import seen_from


class PositionAttention(AttentionBlock):
    """``x + γ · (v Aᵀ)`` with ``A = softmax over keys of qᵀk``: no scale, q and k of C // 8 channels, γ = 0 at first.

    Args:
        in_channels: ``C``, the channels of the map, at least 8.
        hidden_channels: of q and k; None means ``C // 8``.
        identity: as published: γ starts at 0, and no walk over layers finds it.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 8 channels, and no ``hidden_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | None = None,
        *,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity)
        hidden = hidden_width(in_channels, 8, hidden_channels)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_conv = nn.Conv2d(in_channels, hidden, 1, **where)
        self.key_conv = nn.Conv2d(in_channels, hidden, 1, **where)
        self.value_conv = nn.Conv2d(in_channels, in_channels, 1, **where)
        self.gamma = nn.Parameter(torch.zeros(1, **where))

    def reset_parameters(self) -> None:
        """Start again; the convolutions are not this module's own."""
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the new map, or ``relu(new + shortcut)``."""
        check_map(x, *expects(self.query_conv), shortcut)
        return add_shortcut(x + self.attended(x, nonlocal_attention), shortcut)

    def attended(self, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """What is added to ``x``, with ``attend`` as :func:`triton_attn.functional.nonlocal_attention`."""
        convolutions = self.query_conv, self.key_conv, self.value_conv
        q, k, v = (convolution(x).flatten(2).transpose(1, 2) for convolution in convolutions)
        attended = attend(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.gamma.to(attended.dtype) * attended

    def weights(self) -> Any:
        """Weight and bias of the queries', the keys' and the values' convolution; None if they are to be called."""
        return plain_weights(self, ("query_conv", POINTWISE), ("key_conv", POINTWISE), ("value_conv", POINTWISE))

    def attention_from(self, x: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
        """Where the chosen positions ``(y, x)`` look, ``(N, len(positions), H, W)``: :func:`.seen_from.seen_from`."""
        check_map(x, *expects(self.query_conv))
        q, k = (conv(x).flatten(2).transpose(1, 2) for conv in (self.query_conv, self.key_conv))
        size = (x.shape[2], x.shape[3])
        return seen_from(q, k, positions, size, size)


class ChannelAttention(AttentionBlock):
    """``x + γ · softmax(max_row E − E) X`` with ``E = X Xᵀ`` between channels, ``X`` the map as ``(C, HW)``.

    That is a softmax over −E: a channel looks at those that are least like it. γ = 0 at first.

    Args:
        in_channels: ``C``, the channels of the map, or None for any.
        identity: as published: γ starts at 0, and no walk over layers finds it.
        device, dtype: where and in what type the parameter is made.
    """

    def __init__(
        self, in_channels: int | None = None, *, identity: bool = False, device: Device = None, dtype: DType = None
    ) -> None:
        super().__init__(identity)
        if in_channels is not None:
            positive("in_channels", in_channels)
        self.channels = in_channels
        self.gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Start again."""
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the new map, or ``relu(new + shortcut)``."""
        check_map(x, self.channels, self.gamma, shortcut)
        return add_shortcut(attended_channels(x, self.gamma), shortcut)

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """``"channel"`` is how much of a channel is added to all of them, the means of the attention's columns."""
        check_map(x, self.channels, self.gamma)
        return {"channel": channel_scores(x).mean(1)[:, :, None, None]}


def channel_scores(x: Tensor) -> Tensor:
    """``softmax(max_row E − E)`` with ``E = X Xᵀ``, ``(N, C, C)``, in the products' dtype."""
    rows = x.flatten(2)
    scores = rows @ rows.transpose(1, 2)
    return torch.softmax(scores.amax(-1, keepdim=True) - scores, dim=-1).to(scores.dtype)


def attended_channels(x: Tensor, gamma: Tensor) -> Tensor:
    """The map and γ times what its channels attend."""
    attention = channel_scores(x)
    attention = gamma.to(attention.dtype) * attention  # C×C, where the map would be another pass
    return x + (attention @ x.flatten(2)).unflatten(2, x.shape[2:])


class DualAttention(AttentionBlock):
    """``conv_out(dropout(f_p(PAM(h_p(x))) + f_c(CAM(h_c(x)))))``: DANet's head.

    ``h`` and ``f`` are 3×3 convolutions, each with a batch norm and ReLU, to C // 4 channels and between as many.

    Args:
        in_channels: ``C``, the channels of the map, at least 32 by default.
        out_channels: of the result; None means ``C``. DANet has as many as there are classes.
        hidden_channels: between the convolutions; None means ``C // 4``.
        dropout: the share of channels that are dropped in training.
        identity: add the head to the map, and change nothing at first: ``conv_out`` starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: too few channels, ``dropout`` is no share, or ``identity`` with other channels out than in.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        hidden_channels: int | None = None,
        *,
        dropout: float = 0.1,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity)
        hidden = hidden_width(in_channels, 4, hidden_channels)
        out = in_channels if out_channels is None else out_channels
        positive("out_channels", out)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1, got {dropout!r}")
        if identity and out != in_channels:
            raise ValueError(f"out_channels must be in_channels={in_channels} for identity=True, got {out}")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_channels = in_channels
        self.position_in = _convolution(in_channels, hidden, **where)
        self.position = PositionAttention(hidden, **where)
        self.position_out = _convolution(hidden, hidden, **where)
        self.channel_in = _convolution(in_channels, hidden, **where)
        self.channel = ChannelAttention(hidden, **where)
        self.channel_out = _convolution(hidden, hidden, **where)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_out = last_convolution(hidden, out, identity, **where)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` ``(N, C, H, W)`` to ``(N, out_channels, H, W)``; with a shortcut ``relu(… + shortcut)``."""
        check_map(x, self.in_channels, self.channel.gamma, shortcut)
        position = self.position_out(self.position(self.position_in(x)))
        channel = self.channel_out(self.channel(self.channel_in(x)))
        y = self.conv_out(self.dropout(position + channel))
        return add_shortcut(x + y if self.identity else y, shortcut)

    def attention_from(self, x: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
        """Where the chosen positions ``(y, x)`` look in the half that attends positions."""
        check_map(x, self.in_channels, self.channel.gamma)
        return self.position.attention_from(self.position_in(x), positions)


def _convolution(channels: int, out: int, **where: Any) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, 3, padding=1, bias=False, **where)
    return nn.Sequential(convolution, nn.BatchNorm2d(out, **where), nn.ReLU())
