"""Channel gates by a two-layer network (SE, coordinate) as one op: a map in, the gated map out.

Passes over the map: 3 forward and 4 backward, 4 and 5 with a shortcut (and a mask of one bit per element). They are so
few since Σ_hw(grad · x) is the only thing that the gates' gradient needs of x, and dx = grad · gate + dmean / HW needs
no x. Where maxima are pooled too, their winners are kept, and x is read once more only where there are ties.

Launches: squeeze and apply forward; squeeze, apply and the parameters' gradients backward; one more forward where
maxima are pooled, which must be whole before the network sees them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import channel_gate as plain
from ..tuning import rules
from . import gating, launch
from .gating import Network, Pooled
from .layout import empty_map, served
from .library import Launcher, Op, Results


def channel_gate(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor | None = None,
    *,
    pool: str = "mean",
    hidden_activation: str = "relu",
    activation: str = "sigmoid",
) -> Tensor:
    """:func:`triton_attn.functional.channel_gate` on Triton, for arguments that were checked.

    The weights may also be those of 1×1 convolutions, ``(m, C, 1, 1)`` and ``(C, m, 1, 1)``.
    """
    x, channels_last = served(x)
    network = pool, hidden_activation, activation
    if shortcut is not None and shortcut.dtype != x.dtype:
        # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
        return torch.relu(CHANNEL_GATE(x, weight1, bias1, weight2, bias2, None, *network) + shortcut)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    return CHANNEL_GATE(x, weight1, bias1, weight2, bias2, shortcut, *network)


def forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    saves: bool,
) -> Results:
    """The output, and what the backward needs: the pooled vectors, the hidden units, the gate, ReLU's mask as bits."""
    x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    network = Network("bottleneck", weight1.shape[0], pool, activation, hidden_activation == "relu")
    weight1 = weight1.contiguous()
    pooled, hidden = gating.squeeze(x, channels_last, network, weight=weight1 if network.fused else None, saves=saves)
    hidden = first_layer(pooled, weight1, x.shape[2] * x.shape[3], network) if hidden is None else hidden
    weights = {"bias1_ptr": bias1.contiguous(), "weight_ptr": weight2.contiguous(), "bias2_ptr": bias2.contiguous()}
    y, gate, bits = gating.apply_fwd(x, channels_last, network, weights, hidden=hidden, shortcut=shortcut, saves=saves)
    return (y, pooled.sums, pooled.peak, pooled.winner, hidden, gate, bits) if saves else (y, *(None,) * 6)


def first_layer(pooled: Pooled, weight1: Tensor, positions: int, network: Network) -> Tensor:
    """``weight1`` · every pooled vector, whole: ``(N, K, M)`` float32."""
    from ..kernels.bottleneck import bottleneck_hidden_kernel

    vectors = pooled.sums if pooled.peak is None else pooled.peak
    assert vectors is not None
    batch, splits, channels = vectors.shape
    config = rules.bottleneck_hidden(channels, network.size, splits)
    hidden = torch.empty((batch, network.pools, network.size), dtype=torch.float32, device=vectors.device)
    launch.start(
        bottleneck_hidden_kernel,
        (rules.cdiv(batch, config["BLOCK_N"]), rules.cdiv(network.size, config["BLOCK_M"])),
        vectors.device,
        hidden_ptr=hidden,
        sum_ptr=pooled.sums,
        peak_ptr=pooled.peak,
        weight1_ptr=weight1,
        batch=batch,
        channels=channels,
        positions=positions,
        splits=splits,
        hidden_size=network.size,
        MEAN=network.mean,
        MAX=network.max,
        **config,
    )
    return hidden


def _forward_fake(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    saves: bool,
) -> Results:
    x, channels_last = served(x)
    network = Network("bottleneck", weight1.shape[0], pool, activation, hidden_activation == "relu")
    y = empty_map(x, channels_last)
    if not saves:
        return y, *(None,) * 6
    rows = gating.parts(x, channels_last) if network.fused else network.pools
    return (
        y,
        *gating.empty_pooled(x, network),
        x.new_empty((x.shape[0], rows, network.size), dtype=torch.float32),
        x.new_empty(x.shape[:2], dtype=torch.float32),
        None if shortcut is None else gating.empty_bits(x, channels_last),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    sums: Tensor | None,
    peak: Tensor | None,
    winner: Tensor | None,
    hidden: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    """The gradients of x, weight1, bias1, weight2, bias2 and shortcut; None where not needed or not there (no bits)."""
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    network = Network("bottleneck", weight1.shape[0], pool, activation, hidden_activation == "relu")
    pooled = Pooled(sums, peak, winner)
    weight1, bias1, weight2 = weight1.contiguous(), bias1.contiguous(), weight2.contiguous()
    dlogit, dhidden = gating.squeeze_bwd(grad, x, gate, bits, channels_last, network, weight2)
    dx = dshortcut = None
    parameters: tuple[Tensor | None, ...] = (None,) * 4
    if needs_weights:
        shapes = weight1.shape, weight2.shape
        parameters = weights_bwd(pooled, x.shape[2] * x.shape[3], dlogit, dhidden, hidden, bias1, network, shapes)
    if needs_map:
        weights = {"bias1_ptr": bias1, "weight_ptr": weight1}
        dx, dshortcut = gating.apply_bwd(
            grad, x, gate, bits, channels_last, network, weights, pooled, dhidden=dhidden, hidden=hidden
        )
    return dx, *parameters, dshortcut


def weights_bwd(
    pooled: Pooled,
    positions: int,
    dlogit: Tensor,
    dhidden: Tensor,
    hidden: Tensor,
    bias1: Tensor,
    network: Network,
    weights: tuple[torch.Size, torch.Size],
) -> tuple[Tensor, ...]:
    """The gradients of weight1 and weight2, of the shapes ``weights``, and of both biases, in the dtype of bias1."""
    from ..kernels.bottleneck import bottleneck_weights_bwd_kernel

    batch, splits, channels = dlogit.shape
    parts = hidden.shape[1] // network.pools
    config = rules.bottleneck_weights(channels, network.size, max(splits, parts, dhidden.shape[1]))
    shapes = (weights[0], (network.size,), weights[1], (channels,))
    dweight1, dbias1, dweight2, dbias2 = (
        torch.empty(shape, dtype=bias1.dtype, device=dlogit.device) for shape in shapes
    )
    launch.start(
        bottleneck_weights_bwd_kernel,
        (rules.cdiv(channels, config["BLOCK_C"]), rules.cdiv(network.size, config["BLOCK_M"])),
        dlogit.device,
        dweight1_ptr=dweight1,
        dbias1_ptr=dbias1,
        dweight2_ptr=dweight2,
        dbias2_ptr=dbias2,
        dlogit_ptr=dlogit,
        dhidden_ptr=dhidden,
        hidden_ptr=hidden,
        sum_ptr=pooled.sums,
        peak_ptr=pooled.peak,
        bias1_ptr=bias1,
        batch=batch,
        channels=channels,
        positions=positions,
        splits=splits,
        hidden_size=network.size,
        dhidden_parts=dhidden.shape[1],
        parts=parts,
        HIDDEN_RELU=network.hidden_relu,
        MEAN=network.mean,
        MAX=network.max,
        **config,
    )
    return dweight1, dbias1, dweight2, dbias2


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    sums: Tensor | None,
    peak: Tensor | None,
    winner: Tensor | None,
    hidden: Tensor,
    gate: Tensor,
    bits: Tensor | None,
    pool: str,
    hidden_activation: str,
    activation: str,
    needs_map: bool,
    needs_weights: bool,
) -> Results:
    x, channels_last = served(x)
    shapes = weight1.shape, bias1.shape, weight2.shape, bias2.shape
    return (
        empty_map(x, channels_last) if needs_map else None,
        *(bias1.new_empty(shape) if needs_weights else None for shape in shapes),
        empty_map(x, channels_last) if needs_map and bits is not None else None,
    )


def _formula(*arguments: Any) -> Tensor:
    x, weight1, bias1, weight2, bias2, pool, hidden_activation, activation = arguments
    tensors = x, weight1.flatten(1), bias1, weight2.flatten(1), bias2
    return plain.channel_gate(*tensors, pool=pool, hidden_activation=hidden_activation, activation=activation)


CHANNEL_GATE = Op(
    Launcher(
        "channel_gate(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? shortcut,"
        " str pool, str hidden_activation, str activation, bool saves)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        "channel_gate_backward(Tensor grad, Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2,"
        " Tensor? sums, Tensor? peak, Tensor? winner, Tensor hidden, Tensor gate, Tensor? bits, str pool,"
        " str hidden_activation, str activation, bool needs_map, bool needs_weights)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=6,
    formula=_formula,
    needs=lambda needs: (needs[0] or needs[5], any(needs[1:5])),
    mask=gating.mask,
)
