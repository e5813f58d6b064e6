"""A residual block's tail whose batch norm, attention, shortcut and ReLU are one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import backend, ops
from .ops.normed_gate import Weights, is_served, taken_in
from .reference.batch_norm import BatchNorm, counted, plain_norm, tensors_of


def normed(
    module: nn.Module,
    x: Tensor,
    weights: Weights,
    shortcut: Tensor | None,
    *constants: str,
    activation: str = "none",
    kind: type = nn.BatchNorm2d,
) -> Tensor | None:
    """The gated map of ``module(x)``, where that is a plain batch norm and all of it is served; else None.

    ``weights`` and ``constants`` (network, hidden activation, activation) are those of :func:`.ops.normed_gate`,
    ``activation`` is what stands behind the batch norm, ``kind`` the class that this must be of. Nothing has happened
    where it is None.
    """
    if (norm := plain_norm(module, activation, kind)) is None:
        return None
    given = norm.training, norm.eps, norm.activation
    if (found := ops.NORMED_GATE.again(x, *tensors_of(norm), *weights, shortcut, *constants, *given)) is not None:
        return taken_in(counted(module, norm), found)
    if not _is_served(module, x, norm, weights, shortcut):
        return None
    return ops.normed_gate(x, counted(module, norm), weights, shortcut, *constants)


def norm_in_front(
    module: nn.Module, x: Tensor, parameters: Sequence[Tensor], shortcut: Tensor | None, kind: type = nn.BatchNorm2d
) -> BatchNorm | None:
    """What ``module`` computes, for attention by networks that is now called with it; None where it is to be called.

    ``parameters`` are the attention's, ``kind`` is the class that the module must be of. Compiled, such attention is
    the plain formula.
    """
    norm = plain_norm(module, kind=kind)
    if norm is None or torch.compiler.is_compiling() or not _is_served(module, x, norm, parameters, shortcut):
        return None
    return counted(module, norm)


def _is_served(
    module: nn.Module, x: Tensor, norm: BatchNorm, weights: Sequence[Tensor | None], shortcut: Tensor | None
) -> bool:
    """Whether an op takes the norm in, with attention of these weights behind it."""
    if not _fits(module, x, norm, weights, shortcut):
        return False
    if module.training and module.momentum is None and torch.compiler.is_compiling():
        return False  # its share is a number that no graph knows
    return backend.use_triton(x, *tensors_of(norm), *weights, shortcut, also=_also(norm))


def is_left_to_a_compiler(norm: nn.Module) -> bool:
    """Whether attention by means behind this batch norm is the plain formula: under ``torch.compile``, where the norm
    cannot be part of the op, and Triton was not asked for.

    A compiler computes the mean of what it normalises as it writes it. An op that stands behind reads that once more:
    with shortcut and ReLU 7.1 + 10.2 passes over the map in all, where the compiler plans 6.5 + 8.5 for the formula.
    """
    is_part = plain_norm(norm) is not None and not (norm.training and norm.momentum is None)
    if is_part or not isinstance(norm, _BatchNorm) or backend.requested_backend() == "triton":
        return False
    backend.remark("compiled, the plain formula: its batch norm cannot be part of the op")
    return torch.compiler.is_compiling()


def _also(norm: BatchNorm) -> str:
    between = "" if norm.activation == "none" else f" and {norm.activation}"
    return f", with the batch norm{between} in front"


def _fits(
    module: nn.Module, x: Tensor, norm: BatchNorm, weights: Sequence[Tensor | None], shortcut: Tensor | None
) -> bool:
    """Whether the two modules would make what the op makes; of all else they say what is wrong."""
    first = weights[0]
    assert first is not None
    statistics = [each for each in tensors_of(norm) if each is not None]
    layers = [each for each in weights if each is not None]
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in backend.DTYPES or not is_served(x, norm):
        return False
    if x.shape[1] != module.num_features:
        return False
    if shortcut is not None and (shortcut.shape, shortcut.dtype, shortcut.device) != (x.shape, x.dtype, x.device):
        return False
    for each in layers:  # loops: the oldest torch.compile that is served cannot follow any() over a generator
        if each.device != x.device or each.dtype != first.dtype:
            return False
    for each in statistics:
        if each.device != x.device or each.dtype not in (x.dtype, torch.float32):
            return False
    kind = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):  # the meta device has no autocast to ask for
        return first.dtype == x.dtype
    return torch.promote_types(x.dtype, torch.get_autocast_dtype(kind)) == x.dtype
