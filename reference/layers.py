"""The layers inside of a block: what is known of one by looking at it, and whether its weights say all that it does.

People change inner layers: hooks, pruning, weight and spectral norm, LoRA, quantisation, a class of their own. Such a
layer is called, so that the change counts. An op takes weights alone, and serves where every layer is as it was built.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .identity import ZeroLayer

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Of a convolution: kernel size, stride, padding and dilation."""


def same_size(*kernel: int) -> Geometry:
    """The convolution that keeps the size of a map."""
    ones = (1,) * len(kernel)
    return kernel, ones, tuple(size // 2 for size in kernel), ones


POINTWISE = same_size(1, 1)
CHANGED = "a layer that the kernels compute was changed, and has to be called"
DENSE = None
"""A linear layer, which has no geometry."""


def is_touched(layer: nn.Module) -> bool:
    """Whether something listens to or replaces the layer's calls, which therefore must be made.

    Hooks are how ``prune``, the old ``weight_norm`` and ``spectral_norm``, sharding and observers work. What changes a
    layer's class (parametrizations, LoRA, quantisation) is seen by the class.
    """
    own = layer.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def plain_weights(module: nn.Module, *layers: tuple[str, Geometry | None]) -> Any:
    """Weight and bias of a module's layers, in order, None for no bias; or None if one does more than these say.

    Args:
        module: the block.
        layers: the name of each, and its geometry as a convolution, or :data:`DENSE`.
    """
    if _has_any_global_hook():
        return None
    found: list[Tensor | None] = []
    for name, geometry in layers:
        layer = module._modules[name]
        kind = type(layer)
        assert layer is not None
        if is_touched(layer):
            return None
        own = layer.__dict__
        parameters = own["_parameters"]
        if kind is nn.Linear:
            if geometry is not None:
                return None
        elif kind is nn.Conv2d or kind is nn.Conv1d:
            if (own["kernel_size"], own["stride"], own["padding"], own["dilation"]) != geometry:
                return None
            if own["groups"] != 1 or own["padding_mode"] != "zeros":
                return None
        elif kind is not ZeroLayer:
            return None
        if "weight" not in parameters or "bias" not in parameters:
            return None
        found += parameters["weight"], parameters["bias"]
    return tuple(found)


def expects(layer: nn.Module) -> tuple[int | None, Tensor | None]:
    """The channels that a layer takes, and its weight, whose device and dtype they have; None where nobody can tell.

    It computes nothing: to ask a parametrised layer for its weight is to compute it.
    """
    own = layer.__dict__
    weight = own["_parameters"].get("weight")
    if weight is not None and not weight.is_floating_point():  # stored in fewer bits than it computes with
        weight = None
    return own.get("in_features", own.get("in_channels")), weight


def fit(weights: Any, *shapes: str, biases: bool = True) -> bool:
    """Whether weights and biases are of the shapes that an op takes, whoever put other layers in.

    Args:
        weights: as of :func:`plain_weights`.
        shapes: rows and columns of each weight, digits or letters that stand for one size wherever they are: ``"mc"``.
        biases: whether there must be biases.
    """
    # Loops, which the oldest torch.compile of those that are served can follow; any() over a generator it cannot.
    sizes: dict[str, int] = {str(size): size for size in range(1, 3)}
    for weight, bias, shape in zip(weights[::2], weights[1::2], shapes, strict=True):
        if weight is None or (biases and bias is None):
            return False
        for dimension, letter in enumerate(shape):
            size = weight.shape[dimension]
            if sizes.setdefault(letter, size) != size:
                return False
    return True
