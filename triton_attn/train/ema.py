"""A moving average of the weights, evaluated and saved beside them."""

from __future__ import annotations

from accelerate.utils import broadcast
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average(AveragedModel):
    """The exponential moving average of a network's weights and running statistics, by :mod:`torch.optim.swa_utils`.

    Args:
        model: the network, on its device; it is copied as it is now.
        decay: how much of the average a step leaves; the first step is taken whole.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.requires_grad_(False)

    def agree(self) -> None:
        """Take the running statistics of the first process: those of the others are of other images."""
        for buffer in self.module.buffers():
            buffer.copy_(broadcast(buffer))
