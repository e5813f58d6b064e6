"""The launches of the spatial gate: pool over channels, convolve, apply both gates, and their backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tuning import chips, rules, spatial_rules
from . import launch
from .batch_norm import Gradients, Norm, told_of
from .passes import Maps, multiply, multiply_bwd, start_over, sums


def _start(
    kernel: Any, like: Tensor, channels_last: bool, maps: Maps, *, heavy: bool = False, **arguments: Any
) -> None:
    """Start a kernel that has a program for every image and block of positions of ``like``."""
    channels, positions = like.shape[1], like.shape[2] * like.shape[3]
    lanes = 64 if chips.chip_of(like.device).amd else 32
    rule = spatial_rules.spatial(channels, positions, like.itemsize, lanes, heavy=heavy)
    sizes = {"channels": (channels, "CHUNK"), "positions": (positions, "BLOCK_P")}
    start_over(kernel, like, channels_last, rule, sizes, maps, **arguments)


def _chunks(x: Tensor) -> int:
    """In how many parts sums over channels come."""
    _, channels, height, width = x.shape
    return rules.cdiv(channels, spatial_rules.spatial(channels, height * width, x.itemsize)["CHUNK"])


class OfGates(NamedTuple):
    """What the map's gradient takes of both gates.

    Attributes:
        dpooled: the gradients of sum and maximum over the channels, ``(N, 2, H, W)``.
        winner: the channel that is a position's maximum.
        bits: of ReLU's mask, with a shortcut.
    """

    gate: Tensor
    of_positions: Tensor
    dpooled: Tensor
    winner: Tensor
    bits: Tensor | None

    def contiguous(self) -> OfGates:
        """As kernels read them, which make the last two themselves."""
        gate, of_positions, dpooled = (each.contiguous() for each in self[:3])
        return OfGates(gate, of_positions, dpooled, self.winner, self.bits)


def empty_channel_parts(x: Tensor) -> Tensor:
    """Room for sum and maximum over each chunk of the channels, ``(N, 2 · K, HW)`` float32."""
    return empty_pooled(x, 2 * _chunks(x))


def pool(x: Tensor, gate: Tensor, channels_last: bool, norm: Norm | None = None) -> Tensor:
    """Sum and maximum over each chunk of the channels of ``x · gate``, ``(N, 2 · K, HW)`` float32.

    Here and in what follows, behind a batch norm it is the normalised x, which is never written.
    """
    from ..kernels.spatial_pool import spatial_pool_kernel

    parts = empty_channel_parts(x)
    told = told_of(norm, x)
    _start(spatial_pool_kernel, x, channels_last, {"x": x}, pooled_ptr=parts, x_ptr=x, gate_ptr=gate, **told)
    return parts


def _start_on_positions(kernel: Any, x: Tensor, **arguments: Any) -> None:
    """Start a kernel that has a program for every image and block of positions, and no map."""
    config = _conv(x)
    blocks = rules.cdiv(x.shape[2] * x.shape[3], config["BLOCK_P"])
    launch.start(kernel, (x.shape[0] * blocks,), x.device, **arguments, **config)


def _conv(x: Tensor) -> dict[str, int]:
    """The config of the convolution's kernels."""
    return spatial_rules.conv(x.shape[2] * x.shape[3], x.shape[3], _chunks(x))


def convolve(
    x: Tensor, parts: Tensor, weight: Tensor, bias: Tensor, activation: str, saves: bool
) -> tuple[Tensor, Tensor | None]:
    """The gate of every position of ``x``, ``(N, 1, HW)`` float32, from what was pooled over channels, in parts.

    With ``saves`` also that, whole: mean and maximum ``(N, 2, HW)``.
    """
    from ..kernels.spatial_conv import spatial_conv_fwd_kernel

    spatial, pooled = empty_pooled(x, 1), empty_pooled(x) if saves else None
    told = {"spatial_ptr": spatial, "pooled_ptr": pooled, "parts_ptr": parts, "bias_ptr": bias, "SAVE": saves}
    _start_on_positions(spatial_conv_fwd_kernel, x, **told, **_network(x, weight, activation))
    return spatial, pooled


def _network(x: Tensor, weight: Tensor, activation: str) -> dict[str, Any]:
    """What both kernels are told of the convolution, and of what is pooled in parts."""
    sizes = dict(zip(("channels", "height", "width"), x.shape[1:], strict=True))
    return {"weight_ptr": weight.contiguous(), **sizes, "chunks": _chunks(x), "ACTIVATION": activation}


def empty_pooled(x: Tensor, kinds: int = 2) -> Tensor:
    """Room for ``kinds`` float32 values per position."""
    return x.new_empty((x.shape[0], kinds, x.shape[2] * x.shape[3]), dtype=torch.float32)


def apply_fwd(
    x: Tensor,
    gate: Tensor,
    spatial: Tensor,
    channels_last: bool,
    shortcut: Tensor | None,
    saves: bool,
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``x · gate · spatial``, or ``relu(… + shortcut)``; with ``saves`` the bits of ReLU's mask come with it."""
    from ..kernels.spatial_apply import spatial_apply_fwd_kernel

    gates: dict[str, Any] = {"gate_ptr": gate, "spatial_ptr": spatial, **told_of(norm, x)}
    return multiply(_start, spatial_apply_fwd_kernel, x, channels_last, shortcut, saves, **gates)


def reading_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    pooled: Tensor,
    spatial: Tensor,
    conv_weight: Tensor,
    activation: str,
    channels_last: bool,
    bits: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two passes that read the map, and the convolution's backward between them.

    Returns the gradients of ``Σ_c u`` and ``max_c u`` ``(N, 2, HW)``, the channel that is the maximum ``(N, HW)``
    int32, and partial sums: of the gradient of ``gate`` ``(N, 2 · B, C)``, and of the convolution's ``(N, B', 148)``.
    """
    from ..kernels.spatial_conv import spatial_conv_bwd_kernel

    batch, positions = x.shape[0], x.shape[2] * x.shape[3]
    conv_blocks = rules.cdiv(positions, _conv(x)["BLOCK_P"])
    dpooled, dgate = torch.empty_like(pooled), empty_dgate(x)
    winner = torch.empty((batch, positions), dtype=torch.int32, device=x.device)
    dtaps = torch.empty((batch, conv_blocks, 148), dtype=torch.float32, device=x.device)
    dspatial, winners = gate_bwd(grad, x, gate, pooled, spatial, channels_last, bits, dgate)
    _start_on_positions(
        spatial_conv_bwd_kernel,
        x,
        dpooled_ptr=dpooled,
        winner_ptr=winner,
        dtaps_ptr=dtaps,
        dspatial_ptr=dspatial,
        winners_ptr=winners,
        spatial_ptr=spatial,
        pooled_ptr=pooled,
        **_network(x, conv_weight, activation),
    )
    pool_bwd(x, dpooled, winner, channels_last, dgate)
    return dpooled, winner, dgate, dtaps


def empty_dgate(x: Tensor) -> Tensor:
    """Room for partial sums of the channels' gates' gradients, block by block: by way of y, then of what is pooled."""
    positions = x.shape[2] * x.shape[3]
    blocks = rules.cdiv(positions, spatial_rules.block_p(positions))
    return torch.empty((x.shape[0], 2 * blocks, x.shape[1]), dtype=torch.float32, device=x.device)


def empty_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the gradient of the positions' gate, and the channel that is the maximum, of each chunk: (N, K, HW)."""
    dspatial = empty_pooled(x, _chunks(x))
    return dspatial, torch.empty(dspatial.shape, dtype=torch.int32, device=x.device)


def gate_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    pooled: Tensor,
    spatial: Tensor,
    channels_last: bool,
    bits: Tensor | None,
    dgate: Tensor,
    norm: Norm | None = None,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`empty_parts`, written, and the first half of ``dgate``, which is one of :func:`empty_dgate`.

    Behind a batch norm also of ``gradient``, and both are sums of which :func:`whole_dgate` makes the gates' gradient.
    """
    from ..kernels.spatial_bwd import spatial_gate_bwd_kernel

    dspatial, winners = empty_parts(x)
    told: dict[str, Any] = {"gate_ptr": gate, "pooled_ptr": pooled, "spatial_ptr": spatial}
    told |= {"dspatial_ptr": dspatial, "winner_ptr": winners, "dgate_ptr": dgate, "gradient_ptr": gradient}
    told |= {**told_of(norm, x), "heavy": norm is not None}
    sums(_start, spatial_gate_bwd_kernel, grad, x, channels_last, bits, **told)
    return dspatial, winners


def pool_bwd(
    x: Tensor,
    dpooled: Tensor,
    winner: Tensor,
    channels_last: bool,
    dgate: Tensor,
    norm: Norm | None = None,
    gradient: Tensor | None = None,
) -> None:
    """Write the second halves, from the gradients of ``Σ_c u`` and ``max_c u``."""
    from ..kernels.spatial_bwd import spatial_pool_bwd_kernel

    _start(
        spatial_pool_bwd_kernel,
        x,
        channels_last,
        {"x": x},
        dgate_ptr=dgate,
        gradient_ptr=gradient,
        x_ptr=x,
        dpooled_ptr=dpooled,
        winner_ptr=winner,
        **told_of(norm, x),
    )


def empty_whole(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what :func:`whole_dgate` makes, each ``(N, C)`` float32."""
    dgate, gradient, moment = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(3))
    return dgate, gradient, moment


def whole_dgate(
    x: Tensor, norm: Norm, dgate: Tensor, gradient: Tensor, half: int, before: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Behind a batch norm, from one half of the parts: the gradient of the channels' gates, and the sums with others.

    These are, of the gradient of ``v · gate`` with v the normalised map, the sum, and that times ``x - mean``.
    """
    from ..kernels.batch_norm import normed_gate_bwd_kernel

    found = empty_whole(x)
    batch, blocks, channels = dgate.shape[0], dgate.shape[1] // 2, dgate.shape[2]
    config = rules.whole(channels, blocks)
    launch.start(
        normed_gate_bwd_kernel,
        (batch * rules.cdiv(channels, config["BLOCK_C"]),),
        x.device,
        dgate_ptr=found[0],
        gradient_ptr=found[1],
        moment_ptr=found[2],
        gradient_parts_ptr=gradient,
        moment_parts_ptr=dgate,
        gradient_before_ptr=before[0],
        moment_before_ptr=before[1],
        channels=channels,
        blocks=blocks,
        HALF=half,
        **told_of(norm, x),
        **config,
    )
    return found


def sums_bwd(
    dgate: Tensor, dtaps: Tensor, weight: Tensor, bias: Tensor, needs_weights: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The ends of sums over positions: the gradient of the channels' gate, of which ``dgate`` ``(N, S, C)`` are parts.

    And those of the convolution's weight and bias where they are needed, of which ``dtaps`` ``(N, B, 148)`` are parts.
    """
    from ..kernels.spatial_sums import spatial_sums_bwd_kernel

    batch, splits, channels = dgate.shape
    whole = torch.empty((batch, channels), dtype=torch.float32, device=dgate.device)
    dweight, dbias = (torch.empty_like(weight), torch.empty_like(bias)) if needs_weights else (None, None)
    config = {**rules.whole(channels, splits), **spatial_rules.CONV_PARAMETERS}
    tiles = batch * rules.cdiv(channels, config["BLOCK_C"])
    launch.start(
        spatial_sums_bwd_kernel,
        (tiles + (rules.cdiv(49, config["BLOCK_K"]) if needs_weights else 0),),
        dgate.device,
        dgate_ptr=whole,
        dweight_ptr=dweight,
        dbias_ptr=dbias,
        dgate_parts_ptr=dgate,
        part_ptr=dtaps,
        channels=channels,
        splits=splits,
        parts=dtaps.shape[0] * dtaps.shape[1],
        tiles=tiles,
        WEIGHTS=needs_weights,
        **config,
    )
    return whole, dweight, dbias


def apply_bwd(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    dmean: Tensor,
    spatial: Tensor,
    dpooled: Tensor,
    winner: Tensor,
    channels_last: bool,
    bits: Tensor | None,
    dpeak: Tensor | None = None,
    peak: Tensor | None = None,
    place: Tensor | None = None,
    norm: Norm | None = None,
    by: Gradients | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x, and with ``bits`` that of the shortcut, else None.

    Of x only the layout is looked at, unless its maxima over positions have a gradient ``dpeak`` too. ``by`` is for a
    norm in training.
    """
    from ..kernels.spatial_apply import spatial_apply_bwd_kernel

    told: dict[str, Any] = {"gate_ptr": gate, "dmean_ptr": dmean, "spatial_ptr": spatial}
    told |= {"dpooled_ptr": dpooled, "winner_ptr": winner}
    told |= {"dpeak_ptr": dpeak, "peak_ptr": peak, "place_ptr": place, "MAX": dpeak is not None}
    told |= {"by_mean_ptr": by and by.by_mean, "by_variance_ptr": by and by.by_variance, **told_of(norm, x)}
    told |= {"heavy": dpeak is not None or norm is not None}
    kernel = spatial_apply_bwd_kernel
    return multiply_bwd(_start, kernel, grad, x, channels_last, bits, dpeak is not None, **told)
