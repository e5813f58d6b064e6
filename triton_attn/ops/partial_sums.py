"""The end of sums that many programs took parts of: in a launch of its own, or beside another one's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tuning import rules
from . import launch

NAMES = ("dweight1_ptr", "dbias1_ptr", "dweight2_ptr", "dbias2_ptr")


class Sums(NamedTuple):
    """Up to four sums, the gradients of a gate network's parameters, one behind the other in their parts."""

    parts: Tensor  # (P, K) float32
    outs: tuple[Tensor | None, ...]  # None where nobody asks
    sizes: tuple[int, ...]  # of each its elements, K in all
    few: bool  # whether there are few parts: one of many images each

    @classmethod
    def beside(cls, sums: Sums | None) -> dict[str, Any]:
        """What a kernel is told that adds them up in programs beside its own, an element in an order that K decides."""
        parts, outs, sizes, few = (None, (), (), False) if sums is None else sums
        config = rules.partial_sums(sum(sizes) or 1, few)
        told: dict[str, Any] = {"part_ptr": parts, "parts": 0 if parts is None else parts.shape[0]}
        for i, name in enumerate(NAMES):
            told[name], told[f"size{i + 1}"] = (outs[i], sizes[i]) if i < len(outs) else (None, 0)
        told["beside"] = rules.cdiv(sum(sizes), config["BLOCK_K"])
        return told | {"SUM_P": config["BLOCK_P"], "SUM_K": config["BLOCK_K"]}


def partial_sums(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """``Σ_p parts`` of ``(P, K)`` float32, as ``(K,)`` in ``dtype``, in an order that P and K alone decide."""
    from ..kernels.partial_sums import partial_sums_kernel

    count, size = parts.shape
    config = rules.partial_sums(size)
    out = torch.empty(size, dtype=dtype, device=parts.device)
    launch.start(
        partial_sums_kernel,
        (rules.cdiv(size, config["BLOCK_K"]),),
        parts.device,
        out_ptr=out,
        part_ptr=parts,
        parts=count,
        size=size,
        **config,
    )
    return out
