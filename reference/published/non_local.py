"""Non-local attention as published: with an output projection, and fewer keys than queries.

Source: Wang et al., "Non-local Neural Networks", https://arxiv.org/abs/1711.07971
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ..channel_gate import check_choice
from ..common import AttentionBlock, Device, DType, add_shortcut, check_map, hidden_width
from ..identity import last_convolution, last_norm
from ..layers import expects
from ..non_local import is_finite, nonlocal_attention
from ..tracing import node
from .seen_from import seen_from

MODES = ("embedded_gaussian", "gaussian", "dot_product")
Attend = Callable[..., Tensor]


def pooled(t: Tensor) -> Tensor:
    """Maxima of 2×2 positions; of a single row there is nothing to pool."""
    if isinstance(t, Proxy):
        return node(pooled, t)
    height, width = t.shape[2:]
    return F.max_pool2d(t, (min(2, height), min(2, width)))


class NonLocal(AttentionBlock):
    """``x + BN(out(A g))``, where ``A = softmax(θᵀφ · scale)`` and ``g`` are the values.

    ``θ``, ``φ`` and ``g`` are 1×1 convolutions of the map. It changes nothing at first, as published: the weight of the
    batch norm starts at 0, or without one the projection ``out``.

    Args:
        in_channels: ``C``, the channels of the map.
        hidden_channels: of ``θ``, ``φ`` and ``g``; None means ``C // 2``.
        mode: ``"embedded_gaussian"``; ``"gaussian"``, ``A = softmax(xᵀx · scale)`` without ``θ`` and ``φ``; or
            ``"dot_product"``, ``A = θᵀφ · scale / S`` over ``S`` keys.
        scale: of the scores; None means 1, as published. Others take ``hidden_channels ** -0.5``.
        subsample: whether ``φ`` and ``g`` are max-pooled, 2×2, behind their convolutions: a quarter of the keys.
        norm: whether there is a batch norm behind ``out``.
        identity: what starts at 0 also stays so when a host initialises its own layers.
        device, dtype: where and in what type the parameters are made.

    Raises:
        ValueError: fewer than 2 channels, a mode of no known name, or a scale that is no finite number.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | None = None,
        *,
        mode: str = "embedded_gaussian",
        scale: float | None = None,
        subsample: bool = True,
        norm: bool = True,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity)
        hidden = hidden_width(in_channels, 2, hidden_channels)
        check_choice("mode", mode, MODES)
        if scale is not None and not is_finite(scale):
            raise ValueError(f"scale must be a finite number or None, got {scale!r}")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mode, self.subsample = mode, subsample
        self.scale = 1.0 if scale is None else float(scale)
        if mode != "gaussian":
            self.theta = nn.Conv2d(in_channels, hidden, 1, **where)
            self.phi = nn.Conv2d(in_channels, hidden, 1, **where)
        self.g = nn.Conv2d(in_channels, hidden, 1, **where)
        self.out = last_convolution(hidden, in_channels, identity and not norm, **where)
        self.norm = last_norm(in_channels, identity, **where) if norm else None
        if self.norm is not None:
            nn.init.zeros_(self.norm.weight)
        else:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``x`` and ``shortcut`` ``(N, C, H, W)``; returns the new map, or ``relu(new + shortcut)``.

        Memory grows with H·W: no matrix of positions × positions is built on a large map.
        """
        check_map(x, *expects(self.g), shortcut)
        return add_shortcut(x + self.attended(x, nonlocal_attention), shortcut)

    def attended(self, x: Tensor, attend: Attend) -> Tensor:
        """What is added to ``x``, with ``attend`` as :func:`triton_attn.functional.nonlocal_attention`."""
        mode = "dot" if self.mode == "dot_product" else "softmax"
        y = attend(*self.project(x), self.scale, mode).transpose(1, 2).unflatten(2, x.shape[2:])
        y = self.out(y)
        return y if self.norm is None else self.norm(y)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries ``(N, HW, m)``, the keys and the values ``(N, S, m)`` of the map."""
        theta, phi = (x, x) if self.mode == "gaussian" else (self.theta(x), self.phi(x))
        g = self.g(x)
        maps = (theta, pooled(phi), pooled(g)) if self.subsample else (theta, phi, g)
        q, k, v = (each.flatten(2).transpose(1, 2) for each in maps)
        return q, k, v

    def attention_from(self, x: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
        """Where the chosen positions ``(y, x)`` look, ``(N, len(positions), H, W)``: :func:`.seen_from.seen_from`."""
        check_map(x, *expects(self.g))
        q, k, _ = self.project(x)
        height, width = x.shape[2:]
        keys = (max(height // 2, 1), max(width // 2, 1)) if self.subsample else (height, width)
        return seen_from(q, k, positions, (height, width), keys, scale=self.scale, dot=self.mode == "dot_product")
