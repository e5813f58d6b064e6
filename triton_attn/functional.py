"""The fused ops as functions: checked, and served by Triton or by the plain twin as the tensor allows.

Differentiable in every tensor, as often as wanted. Under ``torch.autocast`` the weights may stay float32. Maps in the
contiguous and in the channels_last layout are served as they are, and the result has the layout of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backend, ops
from .ops.library import is_untraced
from .ops.normed_gate import DENSE, NEIGHBOURS
from .ops.normed_gate import is_served as normed_is_served
from .reference import channel_gate as plain
from .reference import non_local as plain_non_local
from .reference.attention_gate import attention_gate as plain_attention_gate
from .reference.attention_gate import check_gate_network as check_attention_gate_network
from .reference.attention_gate import check_gating
from .reference.batch_norm import BatchNorm as BatchNorm
from .reference.batch_norm import batch_norm, check_norm, tensors_of
from .reference.cbam import cbam as plain_cbam
from .reference.cbam import check_spatial_gate
from .reference.common import check_map, is_autocast
from .reference.coordinate import LINEAR
from .reference.dual import dual as plain_dual
from .reference.pixel import check_pixel_network
from .reference.pixel import pixel_attention as plain_pixel_attention


def channel_gate(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor | None,
    bias2: Tensor | None,
    shortcut: Tensor | None = None,
    *,
    pool: str = "mean",
    hidden_activation: str = "relu",
    activation: str = "sigmoid",
    norm: BatchNorm | None = None,
) -> Tensor:
    """``x · act(Σ_v (weight2 · hidden(weight1 · v + bias1) + bias2))`` over the pooled vectors ``v``.

    With a shortcut ``relu(… + shortcut)``. The defaults are squeeze-and-excitation.

    Args:
        x: ``(N, C, H, W)``.
        weight1, bias1: ``(m, C)`` and ``(m,)``, the squeeze to ``m`` hidden units. A bias may be None.
        weight2, bias2: ``(C, m)`` and ``(C,)``, the excitation. None is for a gate of one layer, ``(C, C)``:
            ``x · act(Σ_v (weight1 · v + bias1))``, as in effective squeeze-and-excitation.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.
        pool: over positions, by ``"mean"``, by ``"max"`` (ties share the gradient evenly), ``"both"``, each of which
            goes through the network by itself, or ``"half"``, half of the one and half of the other added up.
        hidden_activation: ``"relu"``, ``"silu"``, ``"hardswish"``, ``"gelu"``, ``"gelu_tanh"`` (its approximation),
            ``"leaky_relu"`` (of slope 0.01) or ``"none"``.
        activation: the gate's, ``"sigmoid"``, ``"hard_sigmoid"`` (``relu6(z + 3) / 6``), ``"none"``; and what is 1 for
            a network that gives 0: ``"double_sigmoid"`` (``2σ``), ``"double_hard_sigmoid"``, ``"one_plus"``.
        norm: a :class:`BatchNorm` that ``x`` goes through first, with an activation behind it or none. With the pool
            ``"mean"`` what comes out of it is never written: a training step moves the map 3 times forward and 5
            backward, 4 and 6 with a shortcut. With another pool PyTorch normalises.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    plain.check_dense(weight1, bias1, weight2, bias2)
    plain.check_choice("pool", pool, plain.POOLS)
    plain.check_choice("hidden_activation", hidden_activation, plain.HIDDEN_ACTIVATIONS)
    plain.check_choice("activation", activation, plain.ACTIVATIONS)
    check_map(x, weight1.shape[1], weight1, shortcut)
    if norm is not None:
        check_norm(norm, x.shape[1], x.device)
        weights = weight1, bias1, weight2, bias2
        tensors = (*tensors_of(norm), *weights)
        if pool == "mean" and normed_is_served(x, norm) and backend.use_triton(x, *tensors, shortcut):
            return ops.normed_gate(x, norm, weights, shortcut, DENSE, hidden_activation, activation)
        x = batch_norm(x, norm)
    weights = weight1, bias1, weight2, bias2
    if backend.use_triton(x, *weights, shortcut):
        return ops.serve(ops.CHANNEL_GATE, x, weights, shortcut, pool, hidden_activation, activation)
    kinds: Any = {"pool": pool, "hidden_activation": hidden_activation, "activation": activation}
    return plain.channel_gate(x, weights, shortcut, **kinds)


def gate_by(x: Tensor, network: Callable[..., Tensor], shortcut: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """``x · network(pooled x)`` by a gate network of any kind; with a shortcut ``relu(… + shortcut)``.

    PyTorch runs the network, which sees the pooled map alone, ``(N, C)`` values: whatever it does (a batch norm, any
    activation, hooks), the map moves 3 times forward and 4 times backward. Under ``torch.compile`` this is the formula,
    which its compiler fuses around the network.

    Args:
        x: ``(N, C, H, W)``.
        network: takes the pooled map ``(N, C, 1, 1)`` in the dtype of ``x``, and returns the gates ``(N, C, 1, 1)``.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.
        pool: over positions, by ``"mean"``, by ``"max"`` (ties share the gradient evenly), ``"half"``, half of the one
            and half of the other added up, or ``"both"``, with which the network gets two arguments, mean and maximum.

    Raises:
        TypeError: an input that is no floating-point tensor, or a network that returns no tensor.
        ValueError: shapes, devices or choices that do not fit together, or gates of another shape.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    plain.check_choice("pool", pool, plain.POOLS)
    check_map(x, x.shape[1] if isinstance(x, Tensor) and x.dim() == 4 else 1, x, shortcut)
    # An op cannot call the network, so whoever traces gets the formula, and its compiler has nothing in its way.
    serve = ops.gate_by if is_untraced() and backend.use_triton(x, shortcut) else plain.gate_by
    return serve(x, network, shortcut, pool=pool)


def squeeze_excite(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """``x · σ(weight2 · relu(weight1 · mean_hw(x) + bias1) + bias2)``, and ``relu(… + shortcut)`` with a shortcut.

    The arguments are those of :func:`channel_gate`.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    return channel_gate(x, weight1, bias1, weight2, bias2, shortcut)


def coordinate_attention(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """``x · (f(mean_hw x) + f(max_hw x))`` with the linear ``f(v) = weight2 · (weight1 · v + bias1) + bias2``.

    With a shortcut ``relu(… + shortcut)``. The arguments are those of :func:`channel_gate`.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    return channel_gate(x, weight1, bias1, weight2, bias2, shortcut, **LINEAR)


def eca(
    x: Tensor,
    weight: Tensor,
    shortcut: Tensor | None = None,
    *,
    pool: str = "mean",
    activation: str = "sigmoid",
    norm: BatchNorm | None = None,
) -> Tensor:
    """``x · act(conv1d over channels of the pooled x)``, zero-padded; ``relu(… + shortcut)`` with a shortcut.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(K,)`` or ``(1, 1, K)``, the taps of the convolution, an odd number.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.
        pool: over positions, by ``"mean"``, by ``"max"`` (ties share the gradient evenly), ``"both"``, whose gates'
            logits are added, or ``"half"``, half of the one and half of the other.
        activation: the gate's, as for :func:`channel_gate`.
        norm: a :class:`BatchNorm` that ``x`` goes through first, as for :func:`channel_gate`.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    plain.check_neighbours(weight)
    plain.check_choice("pool", pool, plain.POOLS)
    plain.check_choice("activation", activation, plain.ACTIVATIONS)
    check_map(x, x.shape[1] if isinstance(x, Tensor) and x.dim() == 4 else 1, weight, shortcut)
    if norm is not None:
        check_norm(norm, x.shape[1], x.device)
        if pool == "mean" and normed_is_served(x, norm) and backend.use_triton(x, *tensors_of(norm), weight, shortcut):
            return ops.normed_gate(x, norm, (weight, None, None, None), shortcut, NEIGHBOURS, "none", activation)
        x = batch_norm(x, norm)
    if backend.use_triton(x, weight, shortcut):
        return ops.serve(ops.ECA, x, (weight,), shortcut, pool, activation)
    return plain.eca(x, weight, shortcut, pool=pool, activation=activation)


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

    Of equal maxima the first takes the gradient.

    Args:
        x: ``(N, C, H, W)``.
        weight1, bias1: ``(m, C)`` and ``(m,)``, the squeeze to ``m`` hidden channels.
        weight2, bias2: ``(C, m)`` and ``(C,)``, the excitation.
        conv_weight, conv_bias: ``(1, 2, 7, 7)`` and ``(1,)``; the first input channel is the mean.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    plain.check_dense(weight1, bias1, weight2, bias2)
    check_spatial_gate(conv_weight, conv_bias, weight1)
    check_map(x, weight1.shape[1], weight1, shortcut)
    first, convolution = (weight1, bias1, weight2, bias2), (conv_weight, conv_bias)
    if backend.use_triton(x, *first, *convolution, shortcut):
        return ops.serve(ops.CBAM, x, (*first, *(None,) * 4, *convolution), shortcut, "sigmoid")
    return plain_cbam(x, first, convolution, shortcut)


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

    Args:
        x: ``(N, C, H, W)``.
        weight1, bias1, weight2, bias2: the first bottleneck, as in :func:`squeeze_excite`.
        weight3, bias3, weight4, bias4: the second one, of the same shapes.
        conv_weight, conv_bias: ``(1, 2, 7, 7)`` and ``(1,)``; the first input channel is the mean.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    first, second = (weight1, bias1, weight2, bias2), (weight3, bias3, weight4, bias4)
    plain.check_dense(*first)
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        if other.shape != one.shape or other.dtype != one.dtype or other.device != one.device:
            name, twin = (f"{('weight', 'bias')[i % 2]}{i // 2 + n}" for n in (3, 1))
            raise ValueError(
                f"{name} must be as {twin} is, {tuple(one.shape)} in {one.dtype} on {one.device}, "
                f"got {tuple(other.shape)} in {other.dtype} on {other.device}"
            )
    check_spatial_gate(conv_weight, conv_bias, weight1)
    check_map(x, weight1.shape[1], weight1, shortcut)
    weights = *first, *second, conv_weight, conv_bias
    if backend.use_triton(x, *weights, shortcut):
        return ops.serve(ops.CBAM, x, weights, shortcut, "sigmoid")
    return plain_dual(x, first, second, (conv_weight, conv_bias), shortcut)


def pixel_attention(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """``x · σ(weight2 · relu(weight1 · x + bias1) + bias2)`` at every position, ``relu(… + shortcut)`` with a shortcut.

    Args:
        x: ``(N, C, H, W)``.
        weight1, bias1: ``(m, C, 1, 1)`` and ``(m,)``, the convolution to ``m`` hidden channels.
        weight2, bias2: ``(C, m, 1, 1)`` and ``(C,)``, the convolution back.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    check_pixel_network(weight1, bias1, weight2, bias2)
    check_map(x, weight1.shape[1], weight1, shortcut)
    weights = weight1, bias1, weight2, bias2
    if backend.use_triton(x, *weights, shortcut):
        return ops.pixel_attention(x, weights, shortcut)
    return plain_pixel_attention(x, *weights, shortcut)


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

    Args:
        x: ``(N, C, H, W)``.
        weight1, bias1: ``(m, C, 1, 1)`` and ``(m,)``, the map's convolution to ``m`` hidden channels.
        weight2, bias2: ``(m, gating's channels, 1, 1)`` and ``(m,)``, the gating signal's.
        psi_weight, psi_bias: ``(1, m, 1, 1)`` and ``(1,)``, from the hidden channels to one gate per position.
        gating: ``(N, its channels, any H, any W)``, resized bilinearly behind its convolution; ``x`` itself by default.
        shortcut: ``(N, C, H, W)``, added before a last ReLU.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the weights outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    weights = weight1, bias1, weight2, bias2, psi_weight, psi_bias
    check_attention_gate_network(*weights)
    check_map(x, weight1.shape[1], weight1, shortcut)
    check_gating(x, gating, weight2)
    if backend.use_triton(x, *weights, gating, shortcut):
        return ops.attention_gate(x, weights, gating, shortcut)
    return plain_attention_gate(x, weights, gating, shortcut)


def nonlocal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, mode: str = "softmax") -> Tensor:
    """``softmax(scale · q kᵀ) v``, or with mode ``"dot"`` ``scale / S · q kᵀ v``; returns ``(N, L, dv)``.

    Memory grows with L + S: the (L × S) matrix is built on small maps alone. The widths d and dv are any, and any
    positions or channels may be contiguous in memory; those of ``q`` decide which are in the result.

    Args:
        q: ``(N, L, d)``, the queries.
        k: ``(N, S, d)``, the keys, as many as there are values, and as many as queries or not.
        v: ``(N, S, dv)``, the values.
        scale: of the scores; 1 is the block's.
        mode: ``"softmax"``, or ``"dot"``: library products on every backend, in the order that costs less.

    Raises:
        TypeError: an input that is no floating-point tensor, or of another dtype than the others outside of autocast.
        ValueError: shapes, devices or choices that do not fit together.
        BackendError: ``use_backend("triton")`` is in force and Triton cannot serve.
    """
    plain_non_local.check_attention(q, k, v, scale, mode)
    if is_autocast(q) and torch.float64 not in (q.dtype, k.dtype, v.dtype):
        q, k, v = (t.to(torch.get_autocast_dtype(q.device.type)) for t in (q, k, v))
    if mode == "softmax" and backend.use_triton(q, k, v):
        return ops.non_local(q, k, v, scale=scale)
    return plain_non_local.nonlocal_attention(q, k, v, scale, mode)
