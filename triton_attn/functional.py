"""The fused ops as functions: checked, and served by Triton or by the plain twin as the tensor allows."""

from __future__ import annotations

from torch import Tensor

from . import backend, ops
from .reference.attention_gate import attention_gate as plain_attention_gate
from .reference.attention_gate import check_gate_network as check_attention_gate_network
from .reference.attention_gate import check_gating
from .reference.common import check_map
from .reference.pixel import check_pixel_network
from .reference.pixel import pixel_attention as plain_pixel_attention
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


def pixel_attention(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """``x · σ(weight2 · relu(weight1 · x + bias1) + bias2)`` at every position, ``relu(… + shortcut)`` with a shortcut.

    Differentiable once in every argument. Under ``torch.autocast`` the weights may stay float32.

    Args:
        x: ``(N, C, H, W)``; contiguous and channels_last maps are served as they are; the result has ``x``'s layout.
        weight1, bias1: ``(m, C, 1, 1)`` and ``(m,)``, the convolution to ``m`` hidden channels.
        weight2, bias2: ``(C, m, 1, 1)`` and ``(C,)``, the convolution back.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor.
        ValueError: shapes, devices or dtypes that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    check_pixel_network(weight1, bias1, weight2, bias2)
    check_map(x, weight1.shape[1], weight1, shortcut)
    if backend.use_triton(x):
        return ops.pixel_attention(x, weight1, bias1, weight2, bias2, shortcut)
    return plain_pixel_attention(x, weight1, bias1, weight2, bias2, shortcut)


def attention_gate(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    psi_weight: Tensor,
    psi_bias: Tensor,
    gating: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """``x · σ(psi · relu(weight1 · x + bias1 + weight2 · gating + bias2) + psi_bias)``, or ``relu(… + shortcut)``.

    Differentiable once in every argument. Under ``torch.autocast`` the weights may stay float32.

    Args:
        x: ``(N, C, H, W)``; contiguous and channels_last maps are served as they are; the result has ``x``'s layout.
        weight1, bias1: ``(m, C, 1, 1)`` and ``(m,)``, the map's convolution to ``m`` hidden channels.
        weight2, bias2: ``(m, gating's channels, 1, 1)`` and ``(m,)``, the gating signal's.
        psi_weight, psi_bias: ``(1, m, 1, 1)`` and ``(1,)``, from the hidden channels to one gate per position.
        gating: ``(N, its channels, any H, any W)``, resized bilinearly behind its convolution; ``x`` itself by default.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor.
        ValueError: shapes, devices or dtypes that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    weights = weight1, bias1, weight2, bias2, psi_weight, psi_bias
    check_attention_gate_network(*weights)
    check_map(x, weight1.shape[1], weight1, shortcut)
    check_gating(x, gating, weight2)
    if backend.use_triton(x):
        return ops.attention_gate(x, *weights, gating, shortcut)
    return plain_attention_gate(x, *weights, gating, shortcut)
