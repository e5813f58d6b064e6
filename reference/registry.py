"""From a name to a plain block, and from what a person asks for to a block at every site."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from . import published
from .attention_gate import AttentionGate
from .cbam import CBAM
from .coordinate import CoordinateAttention
from .dual import DualAttentionBlock
from .eca import ECABlock
from .non_local import NonLocalBlock
from .pixel import AttentionModule
from .se import SEBlock

BLOCKS: dict[str, type[nn.Module]] = {
    "cbam": CBAM,
    "coordinate": CoordinateAttention,
    "dual": DualAttentionBlock,
    "eca": ECABlock,
    "gate": AttentionGate,
    "nonlocal": NonLocalBlock,
    "pixel": AttentionModule,
    "se": SEBlock,
}

PUBLISHED: dict[str, type[nn.Module]] = {
    "published.cbam": published.CBAM,
    "published.channel": published.ChannelAttention,
    "published.coordinate": published.CoordinateAttention,
    "published.danet": published.DualAttention,
    "published.eca": published.ECABlock,
    "published.gate": published.AttentionGate,
    "published.global_context": published.GlobalContext,
    "published.grid_gate": published.GridAttentionGate,
    "published.nonlocal": published.NonLocal,
    "published.pixel": published.PixelAttention,
    "published.position": published.PositionAttention,
    "published.scse": published.SCSE,
    "published.se": published.SEBlock,
    "published.simam": published.SimAM,
}
"""The blocks as papers and other libraries have them; those above are the tutorial's."""

ALL = dict(sorted((BLOCKS | PUBLISHED).items()))

SITES = ("stem", "layer1", "layer2", "layer3", "layer4", "paper", "block")

Factory = Callable[[int], nn.Module]
Attention = str | Factory


def look_up(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise unless ``name`` is known; the error says the nearest known one.

    Raises:
        ValueError: ``name`` is not one of ``known``.
    """
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


def sites_of(
    attention: Attention | Mapping[str, Attention] | None,
    where: str | Iterable[str],
    attention_kwargs: Mapping[str, Any] | None,
    blocks: Mapping[str, type[nn.Module]],
) -> dict[str, Factory]:
    """Resolve the arguments of a network to a factory ``channels -> nn.Module`` per site.

    Raises:
        TypeError: ``attention`` is of no accepted kind, or ``attention_kwargs`` have no named block to go to.
        ValueError: an unknown name or site, or no site at all.
    """
    if attention is None:
        if attention_kwargs:
            raise TypeError(f"attention_kwargs {dict(attention_kwargs)} given, but attention is None")
        return {}
    if isinstance(attention, Mapping):
        chosen = dict(attention)
    else:
        names = (where,) if isinstance(where, str) else tuple(where)
        chosen = dict.fromkeys(names, attention)
        if not chosen:
            raise ValueError(f"where is empty, expected some of {', '.join(SITES)}")
    for site in chosen:
        look_up("site", site, SITES)
    if attention_kwargs and not any(isinstance(each, str) for each in chosen.values()):
        raise TypeError("attention_kwargs go to blocks given by name, and attention names none: bind them yourself")
    return {site: _factory(each, attention_kwargs or {}, blocks) for site, each in chosen.items()}


def _factory(attention: Attention, kwargs: Mapping[str, Any], blocks: Mapping[str, type[nn.Module]]) -> Factory:
    if isinstance(attention, str):
        look_up("attention", attention, blocks)
        return functools.partial(blocks[attention], **kwargs)
    if isinstance(attention, nn.Module):
        raise TypeError(
            f"attention is a {type(attention).__name__} already built, but every site needs one for its own channels: "
            "pass the class, or a callable (channels -> nn.Module)"
        )
    if not callable(attention):
        raise TypeError(
            "attention must be a name, a callable (channels -> nn.Module), or a mapping from site to either; "
            f"got {type(attention).__name__}"
        )

    def build(channels: int) -> nn.Module:
        module = attention(channels)
        if not isinstance(module, nn.Module):
            raise TypeError(f"attention({channels}) must return an nn.Module, got {type(module).__name__}")
        return module

    return build
