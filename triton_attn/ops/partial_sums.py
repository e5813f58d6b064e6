"""The end of a sum that many programs took parts of, in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tuning import rules
from . import launch


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
