"""A batch norm that stands in front of a channel gate: what ``nn.BatchNorm2d`` computes, at one call, as one argument.

Source: Ioffe, Szegedy, "Batch Normalization", https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .activations import HIDDEN
from .channel_gate import check_choice
from .common import FLOATS
from .layers import is_touched


class BatchNorm(NamedTuple):
    """A batch norm of a map of C channels, and what is activated behind it; arguments as ``F.batch_norm`` has them.

    Attributes:
        weight, bias: ``(C,)``, or None for 1 and 0.
        running_mean, running_var: ``(C,)``. In training they are changed in place, or None; else they are what the map
            is normalised by.
        training: whether it is normalised by the batch's own mean and variance.
        momentum: the share that these take of the running ones.
        eps: added to the variance.
        activation: of the normalised map: ``"none"``, ``"relu"``, ``"silu"``, ``"hardswish"``, ``"gelu"``,
            ``"gelu_tanh"`` or ``"leaky_relu"`` (of slope 0.01).
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5
    activation: str = "none"


def tensors_of(norm: BatchNorm) -> tuple[Tensor | None, ...]:
    """Weight, bias, and the running statistics that the map is normalised by, None in training.

    A function: the oldest torch.compile that is served cannot follow a property of a tuple.
    """
    if norm.training:
        return norm.weight, norm.bias, None, None
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def batch_norm(x: Tensor, norm: BatchNorm) -> Tensor:
    """The normalised and activated map, in plain PyTorch; running statistics are changed as it does."""
    y = F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps
    )
    return HIDDEN[norm.activation](y)


def check_norm(norm: BatchNorm, channels: int, device: torch.device) -> None:
    """Check a batch norm that is to stand in front of a gate.

    Raises:
        TypeError: it is none, or holds something that is no floating-point tensor.
        ValueError: a tensor of another shape or device, a choice of no known name, or no statistics to go by.
    """
    if not isinstance(norm, BatchNorm):
        raise TypeError(f"norm must be a functional.BatchNorm, got {type(norm).__name__}")
    check_choice("norm.activation", norm.activation, tuple(HIDDEN))
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(norm, name)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.dtype not in FLOATS:
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"norm.{name} must be a floating-point tensor, got {what}")
        if tuple(value.shape) != (channels,):
            raise ValueError(f"norm.{name} must be {(channels,)}, got {tuple(value.shape)}")
        if value.device != device:
            raise ValueError(f"norm.{name} is on {value.device}, but x is on {device}")
    if (norm.running_mean is None) != (norm.running_var is None):
        raise ValueError("norm.running_mean and norm.running_var must be given together, got one of them")
    if not norm.training and norm.running_mean is None:
        raise ValueError("norm must have running statistics outside of training, got None")


def plain_norm(module: Any, activation: str = "none", kind: Any = nn.BatchNorm2d) -> BatchNorm | None:
    """What a module computes, if it is an ``nn.BatchNorm2d`` as it was built; None for anything else.

    ``kind`` is the class that it must be of, where somebody knows another that computes the same.

    Of a momentum of None, which goes by how many batches there were, :func:`counted` makes a number.
    """
    if type(module) is not kind or is_touched(module) or _has_any_global_hook():
        return None
    own, buffers = module._parameters, module._buffers
    if "weight" not in own or "bias" not in own:  # parametrised
        return None
    mean, variance = buffers["running_mean"], buffers["running_var"]
    if (mean is None) != (variance is None):
        return None
    training = module.training or mean is None
    if module.training and not module.track_running_stats:
        mean = variance = None
    momentum = 0.0 if module.momentum is None else module.momentum
    return BatchNorm(own["weight"], own["bias"], mean, variance, training, momentum, module.eps, activation)


def counted(module: nn.Module, norm: BatchNorm) -> BatchNorm:
    """A module's batch norm for a call that is now made: counted, where the module counts its batches."""
    assert isinstance(module, nn.BatchNorm2d)
    batches = module.num_batches_tracked
    if not (module.training and module.track_running_stats) or batches is None:
        return norm
    batches.add_(1)
    return norm if module.momentum is not None else norm._replace(momentum=1.0 / float(batches))
