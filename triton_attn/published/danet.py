"""DANet's blocks: attention between positions fused; that between channels is a library's products, and no more."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend, ops
from ..ops.channel_attention import channel_attention
from ..reference import published
from ..reference.common import add_shortcut, check_map, weight_and_bias


def attend_positions(block: published.PositionAttention, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """``block(x, shortcut)`` as one op with a non-local block: γ scales the values' weights, which are small."""
    value = (block.gamma * each for each in weight_and_bias(block, "value_conv"))
    weights = *weight_and_bias(block, "query_conv"), *weight_and_bias(block, "key_conv"), *value
    y = ops.NON_LOCAL_BLOCK.again(x, *weights, shortcut)
    return ops.non_local_block(x, weights, shortcut) if y is None else y


class PositionAttention(published.PositionAttention):
    __doc__ = published.PositionAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.query_conv.in_channels, self.query_conv.weight, shortcut)
        return attend_positions(self, x, shortcut)


class ChannelAttention(published.ChannelAttention):
    __doc__ = published.ChannelAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        backend.refuse("attention between channels is products of the library alone")
        check_map(x, self.channels, self.gamma, shortcut)
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, shortcut)
        return channel_attention(x, self.gamma, shortcut)


class DualAttention(published.DualAttention):
    __doc__ = published.DualAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.in_channels, self.channel.gamma, shortcut)
        position = self.position_out(attend_positions(self.position, self.position_in(x)))
        channel = self.channel_out(self.channel(self.channel_in(x)))
        y = self.conv_out(self.dropout(position + channel))
        return add_shortcut(x + y if self.identity else y, shortcut)
