"""The fused ops as functions: checked, and served by Triton or by the plain twin as the tensor allows."""

from __future__ import annotations

from torch import Tensor

from . import backend, ops
from .reference.cbam import cbam as plain_cbam
from .reference.cbam import check_spatial_gate
from .reference.common import check_map
from .reference.dual import dual as plain_dual
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


def cbam(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None = None,
) -> Tensor:
    """``u · σ(conv7×7([mean_c u, max_c u]))`` of ``u = squeeze_excite(x, …)``, and ``relu(… + shortcut)``.

    Differentiable once in every argument; of equal maxima the first takes the gradient. Under ``torch.autocast`` the
    weights may stay float32.

    Args:
        x: ``(N, C, H, W)``; contiguous and channels_last maps are served as they are; the result has ``x``'s layout.
        weight1, bias1: ``(m, C)`` and ``(m,)``, the squeeze to ``m`` hidden channels.
        weight2, bias2: ``(C, m)`` and ``(C,)``, the excitation.
        conv_weight, conv_bias: ``(1, 2, 7, 7)`` and ``(1,)``; the first input channel is the mean.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor.
        ValueError: shapes, devices or dtypes that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    check_gate_network(weight1, bias1, weight2, bias2)
    check_spatial_gate(conv_weight, conv_bias, weight1)
    check_map(x, weight1.shape[1], weight1, shortcut)
    if backend.use_triton(x):
        return ops.cbam(x, (weight1, bias1, weight2, bias2), None, conv_weight, conv_bias, shortcut)
    return plain_cbam(x, weight1, bias1, weight2, bias2, conv_weight, conv_bias, shortcut)


def dual(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    weight3: Tensor,
    bias3: Tensor,
    weight4: Tensor,
    bias4: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    shortcut: Tensor | None = None,
) -> Tensor:
    """``cbam(squeeze_excite(x, …), …)``, and ``relu(… + shortcut)`` with a shortcut.

    Differentiable once in every argument, as :func:`cbam` is.

    Args:
        x: ``(N, C, H, W)``.
        weight1, bias1, weight2, bias2: the first bottleneck, as in :func:`squeeze_excite`.
        weight3, bias3, weight4, bias4: the second one, of the same shapes.
        conv_weight, conv_bias: ``(1, 2, 7, 7)`` and ``(1,)``; the first input channel is the mean.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor.
        ValueError: shapes, devices or dtypes that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    first, second = (weight1, bias1, weight2, bias2), (weight3, bias3, weight4, bias4)
    check_gate_network(*first)
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        if other.shape != one.shape or other.dtype != one.dtype or other.device != one.device:
            name, twin = (f"{('weight', 'bias')[i % 2]}{i // 2 + n}" for n in (3, 1))
            raise ValueError(
                f"{name} must be as {twin} is, {tuple(one.shape)} in {one.dtype} on {one.device}, "
                f"got {tuple(other.shape)} in {other.dtype} on {other.device}"
            )
    check_spatial_gate(conv_weight, conv_bias, weight1)
    check_map(x, weight1.shape[1], weight1, shortcut)
    if backend.use_triton(x):
        return ops.cbam(x, first, second, conv_weight, conv_bias, shortcut)
    return plain_dual(x, *first, *second, conv_weight, conv_bias, shortcut)
