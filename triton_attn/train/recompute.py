"""Gradient checkpointing: residual blocks keep their input alone, and compute the rest again in the backward."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..reference.resnet import ResNet
from .errors import UserError

STAGES = ("layer1", "layer2", "layer3", "layer4")


def recompute_blocks(model: nn.Module) -> None:
    """Have a network compute its blocks again in the backward: ours block by block, timm's as timm does.

    A copy of the network that is made afterwards would call the blocks of this one.

    Raises:
        UserError: a network of timm that cannot.
    """
    if isinstance(model, ResNet):
        for block in (block for stage in STAGES for block in getattr(model, stage)):
            norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
            block.forward = functools.partial(_run, block.forward, norms)
        return
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UserError(
            f"--grad-checkpointing: {type(model).__name__} of timm cannot compute its blocks again"
        ) from error


def _run(forward: Any, norms: Sequence[_BatchNorm], *given: Any) -> Any:
    return checkpoint(
        forward, *given, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(norms))
    )


@contextlib.contextmanager
def _statistics_kept(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch norms normalise by their batch as before, but do not count it twice in their running statistics."""
    # Without the statistics fewer tensors would be kept for the backward than at the first time, which is an error.
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms if norm.training]
    for norm, _, _ in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum, norm.num_batches_tracked = momentum, counted
