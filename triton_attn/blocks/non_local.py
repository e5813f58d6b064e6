"""Non-local attention, fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backend, ops, reference
from ..ops.layout import served
from ..reference.common import check_map
from ..reference.non_local import attention_matrix, check_returned


class NonLocalBlock(reference.NonLocalBlock):
    __doc__ = reference.NonLocalBlock.__doc__

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, *, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        if backend.is_plain(x) or not backend.use_triton(x, *self.weights(), shortcut):
            return super().forward(x, shortcut, return_attention=return_attention)
        check_map(x, self.query_conv.in_channels, self.query_conv.weight, shortcut)
        if return_attention:
            check_returned(x)
        x, channels_last = served(x)
        projected = projections(self, x, channels_last)
        y = ops.non_local(
            *projected, x=x, shortcut=shortcut, key_bias=self.key_conv.bias, value_bias=self.value_conv.bias
        )
        if not return_attention:
            return y
        width = self.query_conv.out_channels
        q = projected[0][..., :width]
        k = projected[0][..., width : 2 * width] if len(projected) == 1 else projected[1]
        return y, attention_matrix(q, k)


def projections(block: reference.NonLocalBlock, x: Tensor, channels_last: bool) -> list[Tensor]:
    """q, k and v, ``(N, HW, channels)`` in the layout of ``x``: side by side in one tensor, or as three.

    k and v come without their biases. What those do is known exactly: a bias of the keys shifts whole rows of scores,
    which changes no softmax, and one of the values comes out of it as it went in, since a softmax's rows sum to 1.

    One product reads the map once and sums its gradient in one, but has the weights put side by side first, each
    time. Counted, that costs more than it saves where the weights are larger than twice the map.
    """
    convolutions = (block.query_conv, block.key_conv, block.value_conv)
    weights: list[Tensor] = [conv.weight for conv in convolutions]
    query_bias: Tensor = block.query_conv.bias  # type: ignore[assignment]
    biases: list[Tensor | None] = [query_bias, None, None]
    if sum(weight.numel() for weight in weights) <= 2 * x.numel():
        weights = [torch.cat(weights)]
        biases = [torch.cat([query_bias, query_bias.new_zeros(len(weights[0]) - len(query_bias))])]
    if channels_last or x.shape[2] * x.shape[3] == 0:
        # Plain products, (N·HW, C) × (C, channels): the rows are a view of the map.
        rows = x.flatten(2).transpose(1, 2)
        return [F.linear(rows, weight.flatten(1), bias) for weight, bias in zip(weights, biases, strict=True)]
    # Not a product for each image: those would make a weight's gradient for each image too, before it is summed.
    return [F.conv2d(x, weight, bias).flatten(2).transpose(1, 2) for weight, bias in zip(weights, biases, strict=True)]
