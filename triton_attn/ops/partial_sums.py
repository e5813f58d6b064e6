"""Adding up what the programs of a launch have left, in order and in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tuning import rules
from . import launch


def partial_sums(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """``Σ_s partials``, ``(S, K)`` float32, as ``(K,)`` in ``dtype``; zeros where ``S`` is 0."""
    from ..kernels.partial_sums import partial_sums_kernel

    count, size = partials.shape
    config = rules.partial_sums(size)
    total = torch.empty(size, dtype=dtype, device=partials.device)
    launch.start(
        partial_sums_kernel,
        (rules.cdiv(size, config["BLOCK_K"]),),
        partials.device,
        sum_ptr=total,
        partial_ptr=partials,
        count=count,
        size=size,
        **config,
    )
    return total
