"""Non-local attention: every position looks at every other (embedded Gaussian, unscaled).

Source: Wang et al., "Non-local Neural Networks", https://arxiv.org/abs/1711.07971
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from . import attention_by_rows
from .attention_by_rows import AttentionByRows
from .channel_gate import check_choice
from .common import FLOATS, AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width, is_autocast
from .identity import last_convolution
from .layers import POINTWISE, expects, plain_weights
from .tracing import node

# Up to this many positions the (HW × HW) matrix of an image is small (4 MB in float32), and building it is the
# faster way; above it the matrix is never in memory.
EXPLICIT_POSITIONS = 1024


# ``return_attention`` gives no larger matrix: 64 MB an image in float32.
RETURNED_POSITIONS = 4096
MODES = ("softmax", "dot")


def attend_explicit(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """``softmax(scale · q kᵀ) v`` with the whole matrix in memory: the formula itself, and the oracle of the tests.

    ``q`` ``(N, L, d)``, ``k`` ``(N, S, d)``, ``v`` ``(N, S, dv)``; returns ``(N, L, dv)``.
    """
    matrix = attention_matrix(q, k, scale)
    if v.stride(1) == 1 and v.stride(2) != 1:  # as contiguous maps have it, and so has the result
        return (v.transpose(1, 2) @ matrix.transpose(1, 2)).transpose(1, 2)
    return matrix @ v


def attention_matrix(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """``softmax(scale · q kᵀ)`` over the keys, ``(N, L, S)``."""
    scores = q @ k.transpose(1, 2)
    return torch.softmax(scores if scale == 1.0 else scale * scores, dim=-1)


def attend_linear(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """The same in memory that grows with L + S, not L · S. Shapes as in :func:`attend_explicit`."""
    if attention_by_rows.serves(q):
        return AttentionByRows.apply(q if scale == 1.0 else scale * q, k, v)
    return attend_tiled(q, k, v, scale)


def attend_tiled(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """:func:`attend_linear` by PyTorch's tiled attention, on a GPU and wherever operators are traced.

    It wants q, k and v of one width: the narrower are padded with zeros, which leave
    every dot product as it is. It also wants rows without gaps, which the projections of a contiguous map are not
    (without them it would fall back to the whole matrix).
    """
    width, value_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    q, k, v = (F.pad(t, (0, width - t.shape[-1])).contiguous().unsqueeze(1) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)[..., :value_width]


def attend_dot(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """``scale / S · q kᵀ v``: no softmax, so the products go in the order that costs less. Shapes as above.

    The mean over the keys is taken where they are summed, in the product's own accumulators: no sum overflows.
    """
    (_, length, width), (_, source, value_width) = q.shape, v.shape
    nothing = q.new_zeros((1, 1, 1))
    in_order = not is_exported() and length * source * (width + value_width) < (length + source) * width * value_width
    if in_order and length * source <= EXPLICIT_POSITIONS**2:
        scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=scale / source)
        return scores @ v
    return q @ torch.baddbmm(nothing, k.transpose(1, 2), v, beta=0, alpha=scale / source)


def nonlocal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, mode: str = "softmax") -> Tensor:
    """:func:`triton_attn.functional.nonlocal_attention` in plain PyTorch."""
    if isinstance(q, Proxy):
        return node(nonlocal_attention, q, k, v, scale, mode)
    if mode == "dot":
        return attend_dot(q, k, v, scale)
    if is_exported():
        return attend_tiled(q, k, v, scale)
    small = q.shape[1] * k.shape[1] <= EXPLICIT_POSITIONS**2
    return attend_explicit(q, k, v, scale) if small else attend_linear(q, k, v, scale)


def is_exported() -> bool:
    """Whether ``torch.export`` is at work, whose program may see maps of every size: no size decides on its course.

    Not ``torch.compiler.is_exporting()``, which on PyTorch 2.11 is true in every compilation.
    """
    return torch.compiler._is_exporting_flag


def check_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mode: str) -> None:
    """Raise a ValueError or TypeError that names the argument unless these can attend to each other."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor of shape (N, positions, channels), got {type(t).__name__}")
        if t.dim() != 3:
            raise ValueError(f"{name} must be 3-D, (N, positions, channels), got shape {tuple(t.shape)}")
        if t.dtype not in FLOATS:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
        if t.dtype != q.dtype and not is_autocast(q):
            raise TypeError(f"{name} is {t.dtype}, but q is {q.dtype}: convert one of them, or use torch.autocast")
        if t.device != q.device:
            raise ValueError(f"{name} is on {t.device}, but q is on {q.device}")
        if t.shape[0] != q.shape[0]:
            raise ValueError(f"{name} must have q's batch of {q.shape[0]}, got shape {tuple(t.shape)}")
        if t.shape[2] == 0:
            raise ValueError(f"{name} must have at least 1 channel, got shape {tuple(t.shape)}")
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"k must have q's {q.shape[2]} channels, got shape {tuple(k.shape)}")
    if v.shape[1] != k.shape[1]:
        raise ValueError(f"v must have k's {k.shape[1]} positions, got shape {tuple(v.shape)}")
    if k.shape[1] == 0 and q.shape[1] > 0:
        raise ValueError("k must have at least 1 position for q to attend to, got none")
    if not is_finite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    check_choice("mode", mode, MODES)


def is_finite(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_returned(x: Tensor) -> None:
    """Raise a ValueError where the matrix of ``x`` is too large to be looked at."""
    positions = x.shape[2] * x.shape[3]
    if positions > RETURNED_POSITIONS:
        raise ValueError(
            f"return_attention gives a matrix of positions × positions, for up to {RETURNED_POSITIONS} of them; "
            f"this {x.shape[2]}×{x.shape[3]} map has {positions}. attention_from(x, positions) gives single rows of it"
        )


def attended(
    x: Tensor, q: Tensor, k: Tensor, v: Tensor, shortcut: Tensor | None = None, return_attention: bool = False
) -> Any:
    """The new map from the map and its projections, or also the matrix; arguments as of :class:`NonLocalBlock`."""
    if isinstance(x, Proxy):
        return node(attended, x, q, k, v, shortcut, return_attention)
    if return_attention:
        check_returned(x)
        matrix = attention_matrix(q, k)
        return added(matrix.to(v.dtype) @ v, x, shortcut), matrix
    return added(nonlocal_attention(q, k, v), x, shortcut)


def added(y: Tensor, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """The map and what every position attends to, ``y`` ``(N, HW, C)``; or ``relu(… + shortcut)``."""
    return add_shortcut(x + y.transpose(1, 2).reshape(x.shape), shortcut)


class NonLocalBlock(AttentionBlock):
    """``x + v Aᵀ`` with ``A = softmax over keys of qᵀk``; q, k, v are 1×1 convolutions of x to C // 2, C // 2 and C.

    Args:
        in_channels: ``C``, the channels of the map, at least 2.
        identity: change nothing at first: the values' convolution starts at 0.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 2 channels.
    """

    def __init__(self, in_channels: int, *, identity: bool = False, device: Device = None, dtype: DType = None) -> None:
        super().__init__(identity)
        hidden = hidden_width(in_channels, 2)
        self.query_conv = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.key_conv = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.value_conv = last_convolution(in_channels, in_channels, identity, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the new map, or ``relu(new + shortcut)``.

        Memory grows with H·W: above 1024 positions no (HW × HW) matrix is built, forward or backward.

        Args:
            x, shortcut: the map, and what is added behind the block.
            return_attention: also return the matrix ``(N, HW, HW)``, for looking at: row i is where position i looks.

        Raises:
            ValueError: the matrix of a map of more than 4096 positions was asked for.
        """
        check_map(x, *expects(self.query_conv), shortcut)
        return attended(x, *self.project(x), shortcut, return_attention)

    def forward_explicit(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The same numbers by the explicit (HW × HW) softmax, whatever the size: the oracle."""
        check_map(x, *expects(self.query_conv), shortcut)
        return added(attend_explicit(*self.project(x)), x, shortcut)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k ``(N, HW, C // 2)`` and v ``(N, HW, C)`` of the map."""
        convolutions = (self.query_conv, self.key_conv, self.value_conv)
        if not isinstance(x, Proxy) and x.shape[2] * x.shape[3] == 0:  # of which a convolution makes nothing
            rows = x.flatten(2).transpose(1, 2)
            q, k, v = (F.linear(rows, conv.weight.flatten(1), conv.bias) for conv in convolutions)
        else:
            q, k, v = (conv(x).flatten(2).transpose(1, 2) for conv in convolutions)
        return q, k, v

    def weights(self) -> Any:
        """The parameters: weight and bias of the queries', the keys' and the values' convolution.

        None if one of these does more than they say, so that each is to be called.
        """
        return plain_weights(self, ("query_conv", POINTWISE), ("key_conv", POINTWISE), ("value_conv", POINTWISE))

    def attention_from(self, x: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
        """Where the chosen positions look: their rows of the attention matrix, as ``(N, len(positions), H, W)``.

        Args:
            x: the map, ``(N, C, H, W)``.
            positions: ``(y, x)`` on the map, each within it.

        Raises:
            ValueError: a position lies outside the map.
        """
        check_map(x, *expects(self.query_conv))
        height, width = x.shape[2:]
        for row, column in positions:
            if not (0 <= row < height and 0 <= column < width):
                raise ValueError(f"positions must lie on the {height}×{width} map, got ({row}, {column})")
        q, k, _ = self.project(x)
        rows = torch.tensor([row * width + column for row, column in positions], device=x.device, dtype=torch.long)
        attention = torch.softmax(q[:, rows] @ k.transpose(1, 2), dim=-1)
        return attention.unflatten(2, (height, width))
