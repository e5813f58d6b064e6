"""Non-local attention: every position looks at every other (embedded Gaussian, unscaled).

Source: Wang et al., "Non-local Neural Networks", https://arxiv.org/abs/1711.07971
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import AttentionBlock, add_shortcut, check_map, hidden_channels

# Up to this many positions the (HW × HW) matrix of an image is small (4 MB in float32), and building it is the
# faster way; above it the matrix is never in memory.
EXPLICIT_POSITIONS = 1024


def attend_explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q kᵀ) v`` with the whole matrix in memory: the formula itself, and the oracle of the tests.

    ``q`` ``(N, L, d)``, ``k`` ``(N, S, d)``, ``v`` ``(N, S, dv)``; returns ``(N, L, dv)``.
    """
    return torch.softmax(q @ k.transpose(1, 2), dim=-1) @ v


def attend_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in memory that grows with L + S, not L · S. Shapes as in :func:`attend_explicit`.

    PyTorch's tiled attention wants q, k and v of one width: the narrower are padded with zeros, which leave
    every dot product as it is. It also wants rows without gaps, which the projections of a contiguous map are not
    (without them it would fall back to the whole matrix).
    """
    width, value_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    q, k, v = (F.pad(t, (0, width - t.shape[-1])).contiguous().unsqueeze(1) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)[..., :value_width]


class NonLocalBlock(AttentionBlock):
    """``x + v Aᵀ`` with ``A = softmax over keys of qᵀk``; q, k, v are 1×1 convolutions of x to C // 2, C // 2 and C.

    Args:
        in_channels: ``C``, the channels of the map, at least 2.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 2 channels.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_channels(in_channels, 2)
        self.query_conv = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.key_conv = nn.Conv2d(in_channels, hidden, kernel_size=1, device=device, dtype=dtype)
        self.value_conv = nn.Conv2d(in_channels, in_channels, kernel_size=1, device=device, dtype=dtype)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the new map, or ``relu(new + shortcut)``.

        Memory grows with H·W: above 1024 positions no (HW × HW) matrix is built, forward or backward.
        """
        check_map(x, self.query_conv.in_channels, self.query_conv.weight, shortcut)
        attend = attend_explicit if x.shape[2] * x.shape[3] <= EXPLICIT_POSITIONS else attend_linear
        return self._attend(attend, x, shortcut)

    def forward_explicit(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The same numbers by the explicit (HW × HW) softmax, whatever the size: the oracle."""
        check_map(x, self.query_conv.in_channels, self.query_conv.weight, shortcut)
        return self._attend(attend_explicit, x, shortcut)

    def _attend(self, attend: Callable[..., Tensor], x: Tensor, shortcut: Tensor | None) -> Tensor:
        attended = attend(*self.project(x)).transpose(1, 2).reshape(x.shape)
        return add_shortcut(x + attended, shortcut)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k ``(N, HW, C // 2)`` and v ``(N, HW, C)`` of the map."""
        q, k, v = (conv(x).flatten(2).transpose(1, 2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        return q, k, v

    def attention_from(self, x: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
        """Where the chosen positions look: their rows of the attention matrix, as ``(N, len(positions), H, W)``.

        Args:
            x: the map, ``(N, C, H, W)``.
            positions: ``(y, x)`` on the map, each within it.

        Raises:
            ValueError: a position lies outside the map.
        """
        check_map(x, self.query_conv.in_channels, self.query_conv.weight)
        height, width = x.shape[2:]
        for row, column in positions:
            if not (0 <= row < height and 0 <= column < width):
                raise ValueError(f"positions must lie on the {height}×{width} map, got ({row}, {column})")
        q, k, _ = self.project(x)
        rows = torch.tensor([row * width + column for row, column in positions], device=x.device, dtype=torch.long)
        attention = torch.softmax(q[:, rows] @ k.transpose(1, 2), dim=-1)
        return attention.unflatten(2, (height, width))
