"""The gate network of one or two dense layers between squeeze and apply.

gate = act2(Σ_k (weight2 · act1(weight1 · v_k + bias1) + bias2)),   or with one layer act2(Σ_k (weight1 · v_k + bias1))

Launches: one where there is one layer or both are small, else two; one more for the parameters' gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tuning import chips, rules
from . import launch
from .gating import Pooled, empty_pooled, has_max, has_mean

Weights = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Parameters(NamedTuple):
    """Those of both layers; there is one layer where ``weight2`` is None."""

    weight1: Tensor  # (M, C)
    bias1: Tensor | None  # (M,)
    weight2: Tensor | None  # (C, M)
    bias2: Tensor | None  # (C,)


class Network(NamedTuple):
    """What a network is beside its parameters."""

    pool: str
    hidden_activation: str
    activation: str

    @property
    def pools(self) -> int:
        """``K``, how many vectors go through it, each by itself."""
        return 2 if self.pool == "both" else 1


class Made(NamedTuple):
    """What a forward made: gates ``(N, C)``, and parts of ``weight1 · v_k``, ``(N, K · P, M)`` (None: one layer)."""

    gate: Tensor
    hidden: Tensor | None
    pooled: Pooled


def empty(like: Tensor, batch: int, channels: int, weight1: Tensor, two: bool, network: Network, saves: bool) -> Made:
    """Room for it; what was pooled is for a backward alone."""
    gate = like.new_empty((batch, channels), dtype=torch.float32)
    hidden = None
    if two:
        parts = rules.cdiv(channels, rules.CHUNK)
        hidden = like.new_empty((batch, network.pools * parts, weight1.shape[0]), dtype=torch.float32)
    none = Pooled(None, None, None)
    return Made(gate, hidden, empty_pooled((batch, channels), network.pool, like.device) if saves else none)


def forward(
    parts: Pooled,
    positions: int,
    parameters: Parameters,
    network: Network,
    dtype: torch.dtype,
    *,
    saves: bool,
    scale: Tensor | None = None,
    product: Tensor | None = None,
) -> Made:
    """The gates of what was pooled in ``parts`` ``(N, S, C)`` of a map of ``dtype``.

    With ``scale`` ``(N, C)`` the means are multiplied by it first, and the gates times it go to ``product``.
    """
    from ..kernels.dense import dense_gate_fwd_kernel, dense_hidden_fwd_kernel
    from ..kernels.dense_whole import dense_whole_fwd_kernel

    given = parts.given
    batch, splits, channels = given.shape
    weight1, bias1, weight2, bias2 = parameters
    size, peaks = weight1.shape[0], has_max(network.pool)
    whole = weight2 is not None and rules.is_whole(channels, size)
    made = empty(given, batch, channels, weight1, weight2 is not None and (saves or not whole), network, saves)
    pooled = {
        "mean_ptr": made.pooled.mean,
        "peak_ptr": made.pooled.peak,
        "winner_ptr": made.pooled.winner,
        "sum_parts_ptr": parts.mean,
        "peak_parts_ptr": parts.peak,
        "winner_parts_ptr": parts.winner if saves else None,
        "scale_ptr": scale,
        "positions": positions,
        "splits": splits,
        "POOL": network.pool,
        "SAVE": saves,
    }
    common = {
        "batch": batch,
        "channels": channels,
        "hidden_size": size,
        "SCALED": scale is not None,
        "ACTIVATION": network.activation,
        "PRECISION": _precision(dtype, given.device),
    }
    if whole:
        config = rules.dense_whole(channels, size, splits, peaks)
        launch.start(
            dense_whole_fwd_kernel,
            (rules.cdiv(batch, config["BLOCK_N"]), rules.cdiv(channels, config["TILE_C"])),
            given.device,
            gate_ptr=made.gate,
            product_ptr=product,
            hidden_ptr=made.hidden,
            weight1_ptr=weight1,
            bias1_ptr=bias1,
            weight2_ptr=weight2,
            bias2_ptr=bias2,
            HIDDEN=network.hidden_activation,
            **pooled,
            **common,
            **config,
        )
        return made
    config = rules.dense_hidden(channels, size, splits, peaks)
    if weight2 is None:
        config = {**config, "CHUNK": rules.power_of_two(channels)}  # what is activated must be whole
    launch.start(
        dense_hidden_fwd_kernel,
        (
            rules.cdiv(batch, config["BLOCK_N"]),
            rules.cdiv(size, config["BLOCK_M"]),
            rules.cdiv(channels, config["CHUNK"]),
        ),
        given.device,
        hidden_ptr=made.gate if made.hidden is None else made.hidden,
        weight_ptr=weight1,
        bias_ptr=bias1 if weight2 is None else None,
        LAYERS=1 if weight2 is None else 2,
        **pooled,
        **common,
        **config,
    )
    if weight2 is None:
        return made
    config = rules.dense_gate(channels, size)
    launch.start(
        dense_gate_fwd_kernel,
        (rules.cdiv(batch, config["BLOCK_N"]), rules.cdiv(channels, config["BLOCK_C"])),
        given.device,
        gate_ptr=made.gate,
        product_ptr=product,
        hidden_ptr=made.hidden,
        scale_ptr=scale,
        bias1_ptr=bias1,
        weight_ptr=weight2,
        bias_ptr=bias2,
        parts=rules.cdiv(channels, rules.CHUNK),
        POOLS=network.pools,
        HIDDEN=network.hidden_activation,
        **common,
        **config,
    )
    return made


class Gradients(NamedTuple):
    """What a backward makes of the gates' gradient: those of the mean and the maximum, and what weights' are made of.

    ``dhidden`` ``(N, P, M)`` are parts of that of the activated hidden units; with one layer it is whole, and that of
    the gate before its activation, as ``dlogit`` ``(N, C)`` is with two.
    """

    dmean: Tensor | None
    dpeak: Tensor | None
    dhidden: Tensor
    dlogit: Tensor | None


def backward(
    dgate: Tensor,
    made: Made,
    parameters: Parameters,
    network: Network,
    dtype: torch.dtype,
    *,
    needs_pooled: bool = True,
    scale: Tensor | None = None,
    dnext: Tensor | None = None,
) -> Gradients:
    """From the gradient of the gates in parts ``(N, S, C)``.

    With ``scale`` ``(N, C)`` that is of the gates times ``scale``. ``dnext`` ``(N, C)`` is the gradient of the next
    network's input, which is the mean times this one's gates.
    """
    from ..kernels.dense import dense_hidden_bwd_kernel, dense_pooled_bwd_kernel
    from ..kernels.dense_whole import dense_whole_bwd_kernel

    batch, splits, channels = dgate.shape
    weight1, bias1, weight2, _ = parameters
    size, parts = weight1.shape[0], 1 if weight2 is None else rules.cdiv(channels, rules.CHUNK)
    dhidden = torch.empty((batch, parts, size), dtype=torch.float32, device=dgate.device)
    dlogit = None if weight2 is None else torch.empty_like(made.gate)
    dmean = torch.empty_like(made.gate) if needs_pooled and has_mean(network.pool) else None
    dpeak = torch.empty_like(made.gate) if needs_pooled and has_max(network.pool) else None
    gradients = Gradients(dmean, dpeak, dhidden, dlogit)
    common = {
        "dnext_ptr": dnext,
        "batch": batch,
        "channels": channels,
        "hidden_size": size,
        "CHAINED": dnext is not None,
        "ACTIVATION": network.activation,
        "PRECISION": _precision(dtype, dgate.device),
    }
    of_gate = {
        "dhidden_ptr": dhidden,
        "dlogit_ptr": dlogit,
        "dgate_ptr": dgate,
        "gate_ptr": made.gate,
        "scale_ptr": scale,
        "mean_ptr": None if dnext is None else made.pooled.mean,
        "splits": splits,
        "SCALED": scale is not None,
    }
    of_pooled = {
        "dmean_ptr": dmean,
        "dpeak_ptr": dpeak,
        "POOL": network.pool,
        "HIDDEN": network.hidden_activation,
    }
    if needs_pooled and weight2 is not None and rules.is_whole(channels, size):
        config = rules.dense_whole(channels, size, splits)
        launch.start(
            dense_whole_bwd_kernel,
            (rules.cdiv(batch, config["BLOCK_N"]), rules.cdiv(channels, config["TILE_C"])),
            dgate.device,
            hidden_ptr=made.hidden,
            weight1_ptr=weight1,
            bias1_ptr=bias1,
            weight2_ptr=weight2,
            **of_gate,
            **of_pooled,
            **common,
            **config,
        )
        return gradients
    if weight2 is not None:
        config = rules.dense_hidden(channels, size, splits)
        launch.start(
            dense_hidden_bwd_kernel,
            (rules.cdiv(batch, config["BLOCK_N"]), rules.cdiv(size, config["BLOCK_M"]), parts),
            dgate.device,
            weight_ptr=weight2,
            **of_gate,
            **common,
            **config,
        )
        if not needs_pooled:
            return gradients
    config = rules.dense_gate(channels, size)
    launch.start(
        dense_pooled_bwd_kernel,
        (rules.cdiv(batch, config["BLOCK_N"]), rules.cdiv(channels, config["BLOCK_C"])),
        dgate.device,
        dlogit_ptr=dhidden if weight2 is None else None,
        dhidden_ptr=dgate if weight2 is None else dhidden,
        hidden_ptr=made.gate if weight2 is None else made.hidden,
        bias_ptr=bias1,
        gate_ptr=None if dnext is None else made.gate,
        weight_ptr=weight1,
        parts=splits if weight2 is None else parts,
        LAYERS=1 if weight2 is None else 2,
        BLOCK_S=min(rules.parts_block(splits if weight2 is None else parts), 2),
        **of_pooled,
        **common,
        **config,
    )
    return gradients


def weights_bwd(
    made: Made, gradients: Gradients, parameters: Parameters, network: Network, dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """The gradients of the parameters, each like its own; None for those that there are not."""
    from ..kernels.dense import dense_weights_bwd_kernel

    batch, channels = made.gate.shape
    size = parameters[0].shape[0]
    dweight1, dbias1, dweight2, dbias2 = found = tuple(
        None if each is None else torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in parameters
    )
    config = rules.dense_weights(channels, size, dtype.itemsize)
    launch.start(
        dense_weights_bwd_kernel,
        (rules.cdiv(channels, config["BLOCK_C"]), rules.cdiv(size, config["BLOCK_M"])),
        made.gate.device,
        dweight1_ptr=dweight1,
        dbias1_ptr=dbias1,
        dweight2_ptr=dweight2,
        dbias2_ptr=dbias2,
        mean_ptr=made.pooled.mean,
        peak_ptr=made.pooled.peak,
        hidden_ptr=made.hidden,
        bias1_ptr=parameters[1],
        dhidden_ptr=gradients.dhidden,
        dlogit_ptr=gradients.dlogit,
        batch=batch,
        channels=channels,
        hidden_size=size,
        parts=gradients.dhidden.shape[1],
        POOL=network.pool,
        LAYERS=1 if dweight2 is None else 2,
        HIDDEN=network.hidden_activation,
        PRECISION=_precision(dtype, made.gate.device),
        **config,
    )
    return found


def contiguous(parameters: Parameters) -> Parameters:
    """The parameters as the kernels take them."""
    weight1, *others = parameters
    return Parameters(weight1.contiguous(), *(None if each is None else each.contiguous() for each in others))


def _precision(dtype: torch.dtype, device: torch.device) -> str:
    """How the products' float32 factors are multiplied; beside a map of 16 bits the weights have 11 at most."""
    chip = chips.chip_of(device)
    if dtype == torch.float32:
        return chips.precision(dtype, chip)
    return "ieee" if chip.amd else "tf32"
