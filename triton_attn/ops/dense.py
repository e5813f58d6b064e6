"""The gate network of one or two dense layers between squeeze and apply.

gate = act2(Σ_k (weight2 · act1(weight1 · v_k + bias1) + bias2)),   or with one layer act2(Σ_k (weight1 · v_k + bias1))

Launches: as many as there are layers, forward and backward, but one for two small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tuning import chips, rules
from ..tuning.spaces import Config
from . import launch
from .gating import Pooled, empty_pooled, has_max, has_mean
from .partial_sums import Sums

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
    """What a forward made: gates ``(N, C)``; for a backward hidden units before their activation, ``(N, K, M)``.

    There are none where there is one layer.
    """

    gate: Tensor
    hidden: Tensor | None
    pooled: Pooled


def empty(like: Tensor, batch: int, channels: int, weight1: Tensor, two: bool, network: Network, saves: bool) -> Made:
    """Room for it."""
    gate, hidden, pooled = like.new_empty((batch, channels), dtype=torch.float32), None, Pooled(None, None, None)
    if saves:
        pooled = empty_pooled((batch, channels), network.pool, like.device)
        if two:
            hidden = like.new_empty((batch, network.pools, weight1.shape[0]), dtype=torch.float32)
    return Made(gate, hidden, pooled)


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
    made = empty(given, batch, channels, weight1, weight2 is not None, network, saves)
    pooled = made.pooled.arguments(parts) | {
        "positions": positions,
        "splits": splits,
        "POOL": network.pool,
        "SAVE": saves,
    }
    common = {"batch": batch, "channels": channels, "hidden_size": size, "ACTIVATION": network.activation}
    common |= {"scale_ptr": scale, "SCALED": scale is not None, "PRECISION": _precision(dtype, given.device)}
    to_gates: dict[str, Any] = {
        "gate_ptr": made.gate,
        "product_ptr": product,
        "unit_ptr": made.hidden,
        "bias1_ptr": bias1,
    }
    to_gates["HIDDEN"] = network.hidden_activation
    itemsize, others = dtype.itemsize, int(scale is not None)
    if weight2 is not None and rules.is_whole(channels, size, itemsize):
        config = rules.dense_whole(channels, size, splits, itemsize, others, peaks)
        weights = {"weight1_ptr": weight1, "weight2_ptr": weight2, "bias2_ptr": bias2}
        sizes = (batch, "BLOCK_N"), (channels, "TILE_C")
        _start(dense_whole_fwd_kernel, given, sizes, config, **to_gates, **weights, **pooled, **common)
        return made
    config = rules.dense_hidden(channels, size, splits, itemsize, others, peaks)
    if weight2 is None:
        config = {**config, "CHUNK": rules.power_of_two(channels)}  # what is activated must be whole
    chunks = rules.cdiv(channels, config["CHUNK"])
    hidden = made.gate
    if weight2 is not None:
        hidden = torch.empty((batch, network.pools * chunks, size), dtype=torch.float32, device=given.device)
    weights = {"weight_ptr": weight1, "bias_ptr": bias1 if weight2 is None else None}
    layers = {"hidden_ptr": hidden, "LAYERS": 1 if weight2 is None else 2}
    by_chunks = (batch, "BLOCK_N"), (size, "BLOCK_M"), (channels, "CHUNK")
    _start(dense_hidden_fwd_kernel, given, by_chunks, config, **layers, **weights, **pooled, **common)
    if weight2 is None:
        return made
    config = rules.dense_gate(channels, size, itemsize)
    weights = {"weight_ptr": weight2, "bias_ptr": bias2}
    layers = {"hidden_ptr": hidden, "parts": chunks, "BLOCK_S": rules.parts_block(chunks), "POOLS": network.pools}
    sizes = (batch, "BLOCK_N"), (channels, "BLOCK_C")
    _start(dense_gate_fwd_kernel, given, sizes, config, **to_gates, **layers, **weights, **common)
    return made


def _start(kernel: Any, like: Tensor, sizes: Sequence[tuple[int, str]], config: Config, **arguments: Any) -> None:
    """Start a kernel that has a program for every tile: of each axis its size, and what the config calls its block."""
    grid = tuple(rules.cdiv(size, config[block]) for size, block in sizes)
    launch.start(kernel, grid, like.device, **arguments, **config)


class Gradients(NamedTuple):
    """What a backward makes of the gates' gradient: those of the mean and the maximum, and of the parameters.

    Each is like its own, and None where it is not needed, or there is no such thing.
    """

    dmean: Tensor | None
    dpeak: Tensor | None
    of_parameters: tuple[Tensor | None, ...]


def backward(
    dgate: Tensor,
    made: Made,
    parameters: Parameters,
    network: Network,
    dtype: torch.dtype,
    *,
    needs_pooled: bool = True,
    needs_weights: bool = True,
    scale: Tensor | None = None,
    dnext: Tensor | None = None,
) -> Gradients:
    """From the gradient of the gates in parts ``(N, S, C)``.

    With ``scale`` ``(N, C)`` that is of the gates times ``scale``. ``dnext`` ``(N, C)`` is the gradient of the next
    network's input, which is the mean times this one's gates.
    """
    from ..kernels.dense import dense_bwd_kernel, dense_hidden_bwd_kernel

    batch, splits, channels = dgate.shape
    weight1, _, weight2, _ = parameters
    size, pool = weight1.shape[0], network.pool
    common = {"batch": batch, "channels": channels, "hidden_size": size, "ACTIVATION": network.activation}
    common |= {"dnext_ptr": dnext, "CHAINED": dnext is not None, "PRECISION": _precision(dtype, dgate.device)}
    dhidden, parts, dlogit = dgate, splits, None
    if weight2 is not None:
        others = 1 + (scale is not None) + 2 * (dnext is not None)
        config = rules.dense_hidden(channels, size, splits, dtype.itemsize, others, False)
        parts = rules.cdiv(channels, config["CHUNK"])
        dhidden = torch.empty((batch, parts, size), dtype=torch.float32, device=dgate.device)
        dlogit = torch.empty_like(made.gate)
        made_of: dict[str, Any] = {"dgate_ptr": dgate, "gate_ptr": made.gate, "scale_ptr": scale, "weight_ptr": weight2}
        made_of |= {"mean_ptr": None if dnext is None else made.pooled.mean, "splits": splits}
        own = {"dhidden_ptr": dhidden, "dlogit_ptr": dlogit, "SCALED": scale is not None}
        sizes = (batch, "BLOCK_N"), (size, "BLOCK_M"), (channels, "CHUNK")
        _start(dense_hidden_bwd_kernel, dgate, sizes, config, **own, **made_of, **common)
    dmean, dpeak, of_parameters = _room_bwd(made, parameters, pool, needs_pooled, needs_weights)
    config = rules.dense_bwd(channels, size, parts, dtype.itemsize)
    blocks = rules.cdiv(channels, config["BLOCK_C"])
    tiles = blocks * rules.cdiv(batch, config["ROWS"]) if needs_pooled else 0
    launch.start(
        dense_bwd_kernel,
        (tiles + (blocks * rules.cdiv(size, config["WEIGHT_M"]) if needs_weights else 0),),
        dgate.device,
        dmean_ptr=dmean,
        dpeak_ptr=dpeak,
        dweight1_ptr=of_parameters[0],
        dbias1_ptr=of_parameters[1],
        dweight2_ptr=of_parameters[2],
        dbias2_ptr=of_parameters[3],
        dhidden_ptr=dhidden,
        unit_ptr=made.gate if weight2 is None else made.hidden,
        dlogit_ptr=dlogit,
        mean_ptr=made.pooled.mean,
        peak_ptr=made.pooled.peak,
        gate_ptr=None if dnext is None else made.gate,
        weight_ptr=weight1,
        parts=parts,
        tiles=tiles,
        POOLED=needs_pooled,
        WEIGHTS=needs_weights,
        POOL=pool,
        LAYERS=1 if weight2 is None else 2,
        HIDDEN=network.hidden_activation,
        **common,
        **config,
    )
    return Gradients(dmean, dpeak, of_parameters)


def backward_whole(
    dgate: Tensor, made: Made, parameters: Parameters, network: Network, dtype: torch.dtype, needs_weights: bool
) -> tuple[Gradients, Sums | None] | None:
    """:func:`backward` in one launch, and the sums that are yet to be added up; None where the network is not small."""
    from ..kernels.dense_whole import dense_whole_bwd_kernel

    batch, splits, channels = dgate.shape
    weight1, _, weight2, _ = parameters
    size = weight1.shape[0]
    if weight2 is None or not rules.is_whole_bwd(channels, size, dtype.itemsize):
        return None
    config, sums = rules.dense_whole(channels, size, splits, dtype.itemsize, 1, False), None
    gradients = _room_bwd(made, parameters, network.pool, True, needs_weights)
    if needs_weights:
        sizes = (channels * size, size, channels * size, channels)
        parts = dgate.new_empty((rules.cdiv(batch, config["BLOCK_N"]), sum(sizes)))
        sums = Sums(parts, gradients.of_parameters, sizes, few=True)
    _start(
        dense_whole_bwd_kernel,
        dgate,
        ((batch, "BLOCK_N"), (channels, "TILE_C")),
        config,
        dmean_ptr=gradients.dmean,
        dpeak_ptr=gradients.dpeak,
        part_ptr=None if sums is None else sums.parts,
        dgate_ptr=dgate,
        gate_ptr=made.gate,
        unit_ptr=made.hidden,
        mean_ptr=made.pooled.mean,
        peak_ptr=made.pooled.peak,
        weight1_ptr=weight1,
        weight2_ptr=weight2,
        batch=batch,
        channels=channels,
        splits=splits,
        hidden_size=size,
        POOL=network.pool,
        HIDDEN=network.hidden_activation,
        ACTIVATION=network.activation,
        PRECISION=_precision(dtype, dgate.device),
    )
    return gradients, sums


def _room_bwd(made: Made, parameters: Parameters, pool: str, needs_pooled: bool, needs_weights: bool) -> Gradients:
    dmean, dpeak = (torch.empty_like(made.gate) if needs_pooled and has(pool) else None for has in (has_mean, has_max))
    of_parameters = (
        None if each is None or not needs_weights else torch.empty(each.shape, dtype=each.dtype, device=each.device)
        for each in parameters
    )
    return Gradients(dmean, dpeak, tuple(of_parameters))


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
