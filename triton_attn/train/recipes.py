"""What fine-tuning adds to a plain step: softer labels, weights of classes, frozen parts, rates of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms import v2

from .config import Config
from .folder import Sample
from .foreign import classifier_of

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How an epoch is trained.

    Attributes:
        weight: of every class in the loss, ``(classes,)``; None is one for all.
        smoothing: the share of every label that is spread over all classes.
        mix: from images ``(N, C, H, W)`` and labels ``(N,)`` to mixed ones and the shares of the classes
            ``(N, classes)``.
        clip: the largest norm of all gradients together.
        frozen: batch norms that keep their statistics.
        after_step: called behind every step of the optimizer.
    """

    weight: Tensor | None = None
    smoothing: float = 0.0
    mix: Mix | None = None
    clip: float | None = None
    frozen: Sequence[nn.Module] = ()
    after_step: Callable[[], object] | None = None

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits ``(N, classes)`` for labels ``(N,)`` or shares of classes ``(N, classes)``."""
        return F.cross_entropy(logits, labels, weight=self.weight, label_smoothing=self.smoothing)


def make_recipe(
    config: Config,
    samples: Sequence[Sample],
    classes: int,
    model: nn.Module,
    device: torch.device,
    after_step: Callable[[], object] | None = None,
) -> Recipe:
    """The recipe of a run.

    Args:
        config: resolved.
        samples: the images to train on.
        classes: the number of classes.
        model: the network, frozen where it is to be.
        device: where the losses are computed.
        after_step: called behind every step of the optimizer.
    """
    return Recipe(
        weight=balanced(samples, classes).to(device) if config.class_weights == "balanced" else None,
        smoothing=config.label_smoothing,
        mix=make_mix(config, classes),
        clip=config.clip_grad,
        frozen=frozen_norms(model),
        after_step=after_step,
    )


def make_mix(config: Config, classes: int) -> Mix | None:
    """What mixes the images of a batch: Mixup (https://arxiv.org/abs/1710.09412), CutMix
    (https://arxiv.org/abs/1905.04899), of both one by chance, or None."""
    kinds: list[Any] = []
    if config.mixup:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    return v2.RandomChoice(kinds) if len(kinds) > 1 else next(iter(kinds), None)


def balanced(samples: Sequence[Sample], classes: int) -> Tensor:
    """Weights ``(classes,)`` by which every class counts the same: images / (classes · images of the class)."""
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([label for _, label in samples])
    return torch.tensor(compute_class_weight("balanced", classes=np.arange(classes), y=labels), dtype=torch.float32)


def is_attention(key: str) -> bool:
    """Whether a parameter of this name is attention's."""
    return "attention" in key.split(".")


def freeze_backbone(model: nn.Module) -> None:
    """Leave gradients to attention and to the last layer alone."""
    heads = classifier_of(model)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(is_attention(key) or any(key.startswith(f"{head}.") for head in heads))


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms that have parameters and learn none: a frozen one should not see other statistics either."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and (own := list(module.parameters(recurse=False)))
        and not any(parameter.requires_grad for parameter in own)
    ]


def parameter_groups(config: Config, model: nn.Module) -> list[dict[str, Any]]:
    """The parameters that learn, in groups for :func:`triton_attn.train.optim.make_optimizer`.

    Norms and biases, which are what has one dimension, do not decay unless ``--decay-norms`` says so; attention has the
    rate of ``--attention-lr``. What makes no difference makes no group.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = parameter.ndim <= 1 or key.endswith(".bias")
            decay = 0.0 if flat and not config.decay_norms else config.weight_decay or 0.0
            rate = config.attention_lr if is_attention(key) and config.attention_lr else config.lr
            groups.setdefault((decay, rate / config.lr), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "share": share} for (decay, share), parameters in groups.items()
    ]
