"""Attention behind a batch norm, an activation between them or none: what stands in front, and a recipe for blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..reference.layers import is_touched
from .fused import Fused
from .gates import ChannelGate
from .layers import HIDDEN, NORMS, RUNS, unknown
from .strips import StripGate

TAKES_A_NORM = (ChannelGate, StripGate)


class Front(NamedTuple):
    """Layers in front of attention, one after the other: ``called`` ones, and a batch norm that attention may take in.

    With it goes what activates behind it, by its name or ``"none"``; ``rest`` are the layers that this stands for.
    """

    called: list[nn.Module]
    norm: nn.Module | None
    activation: str
    rest: list[nn.Module]


def front_of(layers: Sequence[nn.Module]) -> Front:
    """These layers, with the batch norm at their end if there is one; what is listened to is called.

    From the end on, no further than to the batch norm: this is asked at every call.
    """
    waiting, rest, activation = list(layers), [], "none"
    while waiting:
        layer = waiting.pop()
        kind = type(layer)
        if is_touched(layer):
            break
        if (inside := RUNS.get(kind)) is not None:
            waiting.extend(inside(layer))
            continue
        rest.append(layer)
        if kind in NORMS:
            own = NORMS[kind](layer)
            if own is None or "none" not in (own, activation):
                break
            return Front(waiting, layer, activation if own == "none" else own, rest[::-1])
        if kind is nn.Identity:
            continue
        found = HIDDEN.get(kind, unknown)(layer)
        if found is None or activation != "none":
            break
        activation = found
    return Front(list(layers), None, "none", [])


def called(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What comes out of the last of them."""
    for layer in layers:
        x = layer(x)
    return x


class Within:
    """A block that calls children one after the other, among them attention behind a batch norm.

    Args:
        *children: their names, in the order of their calls; those that are None or not there are not called. Without
            any, all children of the block.
        rest: of the block, its input and what came out of the last child: the output. Without it that is the output.
    """

    what = "batch norm"

    def __init__(self, *children: str, rest: Callable[[Any, Tensor, Tensor], Tensor] | None = None) -> None:
        self.children, self.rest = children, rest

    def _layers(self, module: nn.Module) -> list[tuple[str, nn.Module]]:
        own = module._modules
        named = [(name, own.get(name)) for name in self.children] if self.children else own.items()
        return [(name, layer) for name, layer in named if layer is not None]

    def _stretches(self, module: nn.Module) -> tuple[list[tuple[Front, str, Any]], list[nn.Module]]:
        """What is in front of every attention that may take a norm in, its name and itself; and the layers behind."""
        found: list[tuple[Front, str, Any]] = []
        before: list[nn.Module] = []
        for name, layer in self._layers(module):
            if isinstance(layer, Fused) and isinstance(layer.fused_by, TAKES_A_NORM) and not is_touched(layer):
                found.append((front_of(before), name, layer))
                before = []
            else:
                before.append(layer)
        return found, before

    def _served(self, module: nn.Module) -> dict[str, str]:
        """The names of the attention that takes a batch norm in, and what is activated between them."""
        return {
            name: front.activation
            for front, name, attention in self._stretches(module)[0]
            if front.norm is not None and attention.fused_by.takes_a_norm(attention, front.activation)
        }

    def attentions(self, module: nn.Module) -> list[str]:
        """The names of the attention that takes a batch norm in."""
        return list(self._served(module))

    def takes_a_norm(self, module: nn.Module) -> bool:
        """Whether any attention does."""
        return bool(self._served(module))

    def obstacle(self, module: nn.Module) -> str | None:
        return None if self._served(module) else "no attention behind a batch norm that may be part of its op"

    def how(self, module: nn.Module) -> str:
        between = set(self._served(module).values()) - {"none"}
        return " and ".join(["with batch norm", *sorted(between)])

    def __call__(self, module: Any, x: Tensor) -> Tensor | None:
        stretches, behind = self._stretches(module)
        if not stretches:
            return None
        y = x
        for front, _, attention in stretches:
            y = called(front.called, y)
            gated = None
            if front.norm is not None:
                gated = attention.fused_by.behind(attention, front.norm, y, activation=front.activation)
            y = attention(called(front.rest, y)) if gated is None else gated
        y = called(behind, y)
        return y if self.rest is None else self.rest(module, x, y)
