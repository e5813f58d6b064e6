"""Where single positions look: rows of an attention matrix that is never built as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def seen_from(
    q: Tensor,
    k: Tensor,
    positions: Sequence[tuple[int, int]],
    size: tuple[int, int],
    keys: tuple[int, int],
    *,
    scale: float = 1.0,
    dot: bool = False,
) -> Tensor:
    """The rows of the chosen positions, ``(N, len(positions), H, W)``.

    Fewer keys than positions share each key's weight among the positions that it stands for.

    Args:
        q, k: the queries ``(N, H·W, d)`` and the keys ``(N, S, d)``.
        positions: ``(y, x)`` on the map, each within it.
        size, keys: of the map, ``(H, W)``, and of the map of keys.
        scale, dot: as in :func:`triton_attn.functional.nonlocal_attention`.

    Raises:
        ValueError: a position lies outside the map.
    """
    height, width = size
    for row, column in positions:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"positions must lie on the {height}×{width} map, got ({row}, {column})")
    chosen = torch.tensor([row * width + column for row, column in positions], device=q.device, dtype=torch.long)
    scores = scale * (q[:, chosen] @ k.transpose(1, 2))
    rows = (scores / k.shape[1] if dot else torch.softmax(scores, dim=-1)).unflatten(2, keys)
    if keys == size:
        return rows
    return F.interpolate(rows, size=size, mode="nearest") * (k.shape[1] / (height * width))
