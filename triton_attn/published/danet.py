"""DANet's blocks: attention between positions fused; that between channels is a library's products, and no more.

op        ops/non_local_block.py for positions, here tiled; ops/channel_attention.py for channels, which has no kernel
forward   non_local_fwd
backward  non_local_delta, non_local_rows_bwd, non_local_keys_bwd, non_local_keys_bwd, non_local_queries_bwd
saved     x, q, k and v, ReLU's mask in bits; in 16 bits what was attended and two numbers a row
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend, functional, ops
from ..ops.channel_attention import channel_attention
from ..reference import published
from ..reference.common import add_shortcut, check_map, is_autocast
from ..reference.layers import expects, fit, is_touched


def attend_positions(block: published.PositionAttention, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """``block(x, shortcut)`` as one op with a non-local block: γ scales the values' weights, which are small."""
    found = block.weights()
    if found is None or not fit(found, "mc", "mc", "cc"):  # layers that are to be called
        return add_shortcut(x + block.attended(x, functional.nonlocal_attention), shortcut)
    weights = *found[:4], *(block.gamma * each for each in found[4:])
    y = ops.NON_LOCAL_BLOCK.again(x, *weights, shortcut)
    return ops.non_local_block(x, weights, shortcut) if y is None else y


class PositionAttention(published.PositionAttention):
    __doc__ = published.PositionAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, *expects(self.query_conv), shortcut)
        return attend_positions(self, x, shortcut)


class ChannelAttention(published.ChannelAttention):
    __doc__ = published.ChannelAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if not isinstance(x, Tensor) or backend.is_plain(x):
            return super().forward(x, shortcut)
        backend.refuse("attention between channels is products of the library alone")
        check_map(x, self.channels, self.gamma, shortcut)
        plain = backend.requested_backend() == "reference" or is_autocast(x)
        if plain or torch.compiler.is_compiling():
            return super().forward(x, shortcut)
        return channel_attention(x, self.gamma, shortcut)


class DualAttention(published.DualAttention):
    __doc__ = published.DualAttention.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x) or not backend.use_triton(x, *self.parameters(), shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.in_channels, self.channel.gamma, shortcut)
        inner, y = self.position, self.position_in(x)
        is_plain = type(inner) is published.PositionAttention and not is_touched(inner)
        position = self.position_out(attend_positions(inner, y) if is_plain else inner(y))
        channel = self.channel_out(self.channel(self.channel_in(x)))
        y = self.conv_out(self.dropout(position + channel))
        return add_shortcut(x + y if self.identity else y, shortcut)
