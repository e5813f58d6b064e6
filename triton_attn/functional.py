"""The fused ops as functions: checked, and served by Triton or by the plain twin as the tensor allows."""

from __future__ import annotations

from torch import Tensor

from . import backend, ops
from .reference.common import check_map
from .reference.se import check_gate_network
from .reference.se import squeeze_excite as plain_squeeze_excite


def squeeze_excite(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """``x · σ(weight2 · relu(weight1 · mean_hw(x) + bias1) + bias2)``, and ``relu(… + shortcut)`` with a shortcut.

    Differentiable once in every argument. Under ``torch.autocast`` the weights may stay float32.

    Args:
        x: ``(N, C, H, W)``; contiguous and channels_last maps are served as they are; the result has ``x``'s layout.
        weight1, bias1: ``(m, C)`` and ``(m,)``, the squeeze to ``m`` hidden channels.
        weight2, bias2: ``(C, m)`` and ``(C,)``, the excitation.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor.
        ValueError: shapes, devices or dtypes that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    check_gate_network(weight1, bias1, weight2, bias2)
    check_map(x, weight1.shape[1], weight1, shortcut)
    if backend.use_triton(x):
        return ops.squeeze_excite(x, weight1, bias1, weight2, bias2, shortcut)
    return plain_squeeze_excite(x, weight1, bias1, weight2, bias2, shortcut)
