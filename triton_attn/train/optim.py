"""The optimizer, its state as tensors with names, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..reference.weights import present_keys
from .config import Config
from .tensors import check_tensors


def make_optimizer(config: Config, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> Optimizer:
    """Adam, AdamW, or SGD with momentum 0.9, of parameters or groups of them (``share``: of the learning rate)."""
    decay = config.weight_decay or 0.0
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, config.lr, weight_decay=decay)


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What an optimizer keeps of every parameter, as ``exp_avg/layer1.0.conv1.weight``."""
    return {
        f"{kept}/{name}": value
        for name, parameter in model.named_parameters()
        for kept, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave; parameters without any, which had no gradient yet, start fresh.

    Raises:
        ValueError: there are others, of other shapes or kinds, or with values that are not finite; they are named.
    """
    kinds = ("momentum_buffer",) if isinstance(optimizer, torch.optim.SGD) else ("step", "exp_avg", "exp_avg_sq")
    tensors = present_keys(tensors, {f"{kind}/{name}" for kind in kinds for name, _ in model.named_parameters()})
    state, own = dict[Tensor, dict[str, Tensor]](), dict[str, Tensor]()
    for name, parameter in model.named_parameters():
        if any(f"{kind}/{name}" in tensors for kind in kinds):
            # On the parameter's device, and in its layout: in another one, sums might be rounded in another way.
            state[parameter] = {
                kind: torch.empty(()) if kind == "step" else torch.empty_like(parameter) for kind in kinds
            }
            own |= {f"{kind}/{name}": value for kind, value in state[parameter].items()}
    check_tensors(tensors, own)
    for key, value in own.items():
        value.copy_(tensors[key])
        if key.startswith("step/") and value < 1:
            raise ValueError(f"{key}: expected at least one step, got {value.item():g}")
    optimizer.state.update(state)


class Schedule:
    """A linear warm-up and then a cosine down to zero, set anew at every step of the optimizer.

    The rate is a function of the steps done alone, so there is no state to save.

    Args:
        optimizer: the one whose rate it is.
        config: the rate at the peak, the epochs in all, those of the warm-up, and the epoch that it starts behind.
        steps_per_epoch: how many steps an epoch has.
        epochs_done: the epochs that the run has behind it.
    """

    def __init__(self, config: Config, optimizer: Optimizer, steps_per_epoch: int, epochs_done: int = 0) -> None:
        begun = config.schedule_from or 0
        epochs, warmup = config.epochs - begun, config.warmup_epochs or 0.0
        if begun:  # the warm-up was planned for another number of epochs
            warmup = min(warmup, epochs / 5)
        self.optimizer, self.peak, self.total = optimizer, config.lr, epochs * steps_per_epoch
        self.warmup = min(round(warmup * steps_per_epoch), self.total - 1)
        self.done = (epochs_done - begun) * steps_per_epoch
        self._set()

    def step(self) -> None:
        """The optimizer has made a step."""
        self.done += 1
        self._set()

    def rate(self, done: int) -> float:
        """The learning rate of the step behind ``done`` others."""
        if done < self.warmup:
            return self.peak * (done + 1) / (self.warmup + 1)
        gone = (done - self.warmup) / (self.total - self.warmup)
        return self.peak * (1 + math.cos(math.pi * min(gone, 1.0))) / 2

    @property
    def now(self) -> float:
        """The learning rate of the next step."""
        return self.rate(self.done)

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.now * group.get("share", 1.0)


def make_schedule(config: Config, optimizer: Optimizer, steps_per_epoch: int, epochs_done: int = 0) -> Schedule:
    """The schedule of a run; arguments as of :class:`Schedule`."""
    return Schedule(config, optimizer, steps_per_epoch, epochs_done)
