"""The optimizer and the learning rate over time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from .config import Config


def make_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Adam, AdamW, or SGD with momentum 0.9."""
    decay = config.weight_decay or 0.0
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, config.lr, weight_decay=decay)


def make_schedule(config: Config, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """A linear warm-up and then a cosine down to zero, stepped once per optimizer step."""
    total = config.epochs * steps_per_epoch
    warmup = min(round((config.warmup_epochs or 0) * steps_per_epoch), total - 1)
    if warmup == 0:
        return CosineAnnealingLR(optimizer, total)
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, total - warmup)], milestones=[warmup])
