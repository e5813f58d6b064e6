"""Our blocks in the place where timm's networks take a class of attention: ``attn_layer=``, ``se_layer=``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .fusion.layers import HIDDEN, unknown
from .fusion.swap import known
from .reference.activations import HIDDEN as KNOWN
from .reference.registry import look_up
from .registry import ALL, create_attention

NAMES = {"swish": "silu", "hard_swish": "hardswish", "identity": "none"}
"""timm's names for activations where they are not ours."""


def attn_layer(name: str, **kwargs: Any) -> Callable[..., nn.Module]:
    """What makes blocks as timm's networks ask for them: ``attn_layer("se")(channels, rd_ratio=…, act_layer=…)``.

    The result takes the channels, and by keyword what timm passes on: ``rd_ratio`` or ``rd_channels``, the hidden
    channels of blocks that have some; ``act_layer``, the activation of the network around, which blocks with a choice
    of their hidden activation take; ``device`` and ``dtype``. What else timm passes (``rd_divisor``, ``norm_layer`` …)
    is refused.

    Args:
        name: one of ``list_attention("all")``.
        **kwargs: the block's own arguments, which go before what timm passes.

    Raises:
        ValueError: an unknown name.
    """
    look_up("attention", name, ALL)
    return functools.partial(_make, name, kwargs)


def _make(
    name: str,
    kwargs: dict[str, Any],
    channels: int,
    *,
    rd_ratio: float | None = None,
    rd_channels: int | None = None,
    act_layer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    takes = inspect.signature(ALL[name]).parameters
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    hidden = rd_channels if rd_ratio is None else rd_channels or max(round(channels * rd_ratio), 1)
    if hidden is not None and "hidden_channels" in takes:
        options["hidden_channels"] = hidden
    elif hidden is not None and "reduction" in takes:
        options["reduction"] = max(channels // hidden, 1)
    if act_layer is not None and "hidden_activation" in takes:
        options["hidden_activation"] = _activation(act_layer)
    return create_attention(name, channels, **{**options, **kwargs})


def _activation(layer: Any) -> str:
    """The ops' name for timm's name of an activation, or for a class or function that makes one."""
    known()  # timm's adapter says what timm's own activations are
    made = None if isinstance(layer, str) else layer()
    name = NAMES.get(layer, layer) if made is None else HIDDEN.get(type(made), unknown)(made)
    if type(made) is nn.Identity:
        name = "none"
    if name not in KNOWN:
        raise ValueError(f"act_layer must be one of {', '.join(KNOWN)}, or make one of these, got {layer!r}")
    return name
