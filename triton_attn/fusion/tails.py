"""Recipes for residual blocks that end in attention, a shortcut and ReLU: these three in one pass over the map."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..normed import is_left_to_a_compiler
from ..reference.layers import is_touched
from .context import ContextGate
from .fused import Fused
from .gates import ChannelGate
from .layers import DROPS
from .maps import MapGate
from .strips import StripGate
from .summed import SumGate
from .within import TAKES_A_NORM, Front, called, front_of

TAKES_A_SHORTCUT = (ChannelGate, ContextGate, MapGate, StripGate, SumGate)


class Tail:
    """A block whose forward is ``activation(drop(attention(before(x))) + shortcut(x))``.

    Args:
        *before: the names of the children that are called before the attention, one after the other.
        attention, activation: the names of the attention and of the ReLU behind the addition.
        shortcut: the name of the child that the shortcut goes through, if it is not None.
        drop: the name of what drops the branch at times, if there is such a child.
        add: the addition of branch and shortcut, which of two dtypes may take either.
    """

    what = "tail"

    def __init__(
        self,
        *before: str,
        attention: str,
        activation: str,
        shortcut: str = "downsample",
        drop: str | None = None,
        add: Callable[[Tensor, Tensor], Tensor] = operator.add,
    ) -> None:
        self.before, self.attention, self.activation = before, attention, activation
        self.shortcut, self.drop, self.add = shortcut, drop, add

    def obstacle(self, module: nn.Module) -> str | None:
        children = module._modules
        attention, activation = children.get(self.attention), children.get(self.activation)
        if not isinstance(attention, Fused) or not isinstance(attention.fused_by, TAKES_A_SHORTCUT):
            return "its attention is not fused"
        if is_touched(attention):
            return "its attention has hooks, or a forward of its own"
        if type(activation) is not nn.ReLU or is_touched(activation):
            return f"what follows the addition is no plain ReLU but {type(activation).__name__}"
        drop = None if self.drop is None else children.get(self.drop)
        if drop is not None and (type(drop) not in DROPS or is_touched(drop)):
            return f"a {type(drop).__name__} before the addition"
        return None

    def attentions(self, module: nn.Module) -> list[str]:  # noqa: ARG002
        """The name of the attention."""
        return [self.attention]

    def takes_a_norm(self, module: nn.Module) -> bool:
        """Whether the batch norm in front of the attention comes with it too."""
        children: Any = module._modules
        attention = children[self.attention]
        if not isinstance(attention.fused_by, TAKES_A_NORM):
            return False
        front = front_of([children[name] for name in self.before])
        return front.norm is not None and attention.fused_by.takes_a_norm(attention, front.activation)

    def how(self, module: nn.Module) -> str:
        return "with batch norm, shortcut and ReLU" if self.takes_a_norm(module) else "with shortcut and ReLU"

    def __call__(self, module: Any, x: Tensor) -> Tensor | None:
        children = module._modules
        if self.obstacle(module) is not None or self._drops(module):
            return None  # the attention answers for itself
        front = front_of([children[name] for name in self.before])
        y = called(front.called, x)
        through = children.get(self.shortcut)
        shortcut = x if through is None else through(x)
        attention = children[self.attention]
        if front.norm is not None and isinstance(attention.fused_by, TAKES_A_NORM):
            tail = attention.fused_by.behind(attention, front.norm, y, shortcut, front.activation)
            if tail is not None:
                return tail
        y = called(front.rest, y)
        if self._is_left_to_a_compiler(attention, front):
            gated = attention.fused_from.forward(attention, y)
        elif (tail := attention.fused_by(attention, y, shortcut=shortcut)) is not None:
            return tail
        else:
            gated = attention(y)
        return children[self.activation](self.add(gated, shortcut))

    @staticmethod
    def _is_left_to_a_compiler(attention: Any, front: Front) -> bool:
        by = attention.fused_by
        if not isinstance(by, ChannelGate) or not by.takes_a_norm(attention, "none"):
            return False
        return is_left_to_a_compiler((front.rest or front.called)[-1])

    def _drops(self, module: nn.Module) -> bool:
        drop = None if self.drop is None else module._modules.get(self.drop)
        return drop is not None and drop.training and type(drop) is not nn.Identity and bool(drop.drop_prob)
