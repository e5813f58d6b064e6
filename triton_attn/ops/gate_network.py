"""The launches of CBAM's gate network, all of whose layers run in one kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tuning import spatial_rules
from . import launch

Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def gate_network_fwd(
    sums: Tensor, first: Weights, second: Weights | None, positions: int, save_inputs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gate of one bottleneck on the mean of the map, or the product of two, the second on the gated map's mean.

    ``sums`` ``(N, S, C)`` float32. Returns the gates ``(1, N, C)``, or ``(3, N, C)`` for two bottlenecks: theirs and
    the product; the bottlenecks' inputs ``(G, N, C)``, empty unless ``save_inputs``; and their hidden channels
    ``(G, N, M)``: all float32.
    """
    from ..kernels.gate_network import gate_network_fwd_kernel

    batch, splits, channels = sums.shape
    hidden_size = first[0].shape[0]
    gates, inputs, hidden = empty_gates(sums, hidden_size, batch, channels, second is not None, save_inputs)
    weights = [None if each is None else each.contiguous() for each in (*first, *(second or (None,) * 4))]
    names = [f"{kind}{i}_ptr" for i in (1, 2, 3, 4) for kind in ("weight", "bias")]
    launch.start(
        gate_network_fwd_kernel,
        (batch,),
        sums.device,
        gates_ptr=gates,
        inputs_ptr=inputs,
        hidden_ptr=hidden,
        sum_ptr=sums,
        **dict(zip(names, weights, strict=True)),
        channels=channels,
        hidden_size=hidden_size,
        splits=splits,
        positions=positions,
        SECOND=second is not None,
        SAVE_INPUTS=save_inputs,
        **spatial_rules.gate_network(channels, hidden_size, splits),
    )
    return gates, inputs, hidden


def empty_gates(
    like: Tensor, hidden_size: int, batch: int, channels: int, two: bool, save_inputs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what :func:`gate_network_fwd` returns."""
    return (
        like.new_empty((3 if two else 1, batch, channels), dtype=torch.float32),
        like.new_empty((1 + two, batch, channels) if save_inputs else (0,), dtype=torch.float32),
        like.new_empty((1 + two, batch, hidden_size), dtype=torch.float32),
    )


def gate_network_bwd(
    dgate: Tensor,
    partial: Tensor,
    gates: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    weights: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    positions: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of the sums over positions ``(N, C)``, and what those of the parameters are sums of.

    ``dgate`` ``(N, R, C)`` and ``partial`` ``(N, B, 196)`` are partial sums; ``weights`` two of each bottleneck.
    The rest is the gradients before the activations, ``(G, N, M)`` and ``(G, N, C)``, and ``(N, 196)``: all float32.
    """
    from ..kernels.gate_network import gate_network_bwd_kernel

    batch, parts, channels = dgate.shape
    two = weights[2] is not None
    hidden_size = hidden.shape[2]
    dsum = torch.empty((batch, channels), dtype=torch.float32, device=dgate.device)
    dlogit1, dlogit2 = torch.empty_like(hidden), torch.empty_like(inputs)
    dtaps = torch.empty((batch, partial.shape[2]), dtype=torch.float32, device=dgate.device)
    names = [f"weight{i}_ptr" for i in (1, 2, 3, 4)]
    launch.start(
        gate_network_bwd_kernel,
        (batch,),
        dgate.device,
        dsum_ptr=dsum,
        dlogit1_ptr=dlogit1,
        dlogit2_ptr=dlogit2,
        dtaps_ptr=dtaps,
        dgate_ptr=dgate,
        partial_ptr=partial,
        gates_ptr=gates,
        inputs_ptr=inputs,
        hidden_ptr=hidden,
        **{name: None if each is None else each.contiguous() for name, each in zip(names, weights, strict=True)},
        channels=channels,
        hidden_size=hidden_size,
        parts=parts,
        blocks=partial.shape[1],
        positions=positions,
        SECOND=two,
        **spatial_rules.gate_network(channels, hidden_size, parts),
    )
    return dsum, dlogit1, dlogit2, dtaps


def gate_parameters_bwd(
    inputs: Tensor, dlogit1: Tensor, hidden: Tensor, dlogit2: Tensor, dtaps: Tensor, weight: Tensor, conv_weight: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``G`` bottlenecks' weights and biases, stacked, and of the convolution's weight and bias.

    The bottlenecks' are ``(G, M, C)``, ``(G, M)``, ``(G, C, M)`` and ``(G, C)``, in the dtype of ``weight``.
    """
    from ..kernels.gate_parameters import gate_parameters_bwd_kernel

    bottlenecks, batch, channels = inputs.shape
    hidden_size = hidden.shape[2]
    config, programs = spatial_rules.gate_parameters(channels, hidden_size)
    grads = empty_parameters(weight, conv_weight, bottlenecks)
    dweight1, dbias1, dweight2, dbias2, dconv_weight, dconv_bias = grads
    launch.start(
        gate_parameters_bwd_kernel,
        (bottlenecks * programs + 1,),
        inputs.device,
        dweight1_ptr=dweight1,
        dbias1_ptr=dbias1,
        dweight2_ptr=dweight2,
        dbias2_ptr=dbias2,
        dconv_weight_ptr=dconv_weight,
        dconv_bias_ptr=dconv_bias,
        inputs_ptr=inputs,
        dlogit1_ptr=dlogit1,
        hidden_ptr=hidden,
        dlogit2_ptr=dlogit2,
        dtaps_ptr=dtaps,
        batch=batch,
        channels=channels,
        hidden_size=hidden_size,
        **config,
    )
    return grads


def empty_parameters(weight: Tensor, conv_weight: Tensor, bottlenecks: int) -> tuple[Tensor, ...]:
    """Room for what :func:`gate_parameters_bwd` returns, beside a ``weight`` of ``(M, C)``."""
    hidden_size, channels = weight.shape
    shapes = (
        (bottlenecks, hidden_size, channels),
        (bottlenecks, hidden_size),
        (bottlenecks, channels, hidden_size),
        (bottlenecks, channels),
    )
    return *(weight.new_empty(shape) for shape in shapes), conv_weight.new_empty((1, 2, 7, 7)), conv_weight.new_empty(1)
