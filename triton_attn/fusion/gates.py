"""Recipes for channel gates, ``x · gate(pooled x)``: in one op where it knows their network, else by parts.

By parts, the network is called as it stands on its small vectors, layer by layer, with all that somebody did to one of
them; what moves the map is fused either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend, functional, ops
from ..normed import normed
from ..ops.library import Op
from ..ops.normed_gate import DENSE, NEIGHBOURS
from ..reference import channel_gate as plain
from ..reference.layers import is_touched
from .layers import GATES, HIDDEN, is_dense, unknown

Network = Callable[..., Tensor]
Call = tuple[Op, tuple[Tensor | None, ...], tuple[str, ...]]
POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
UNEXPECTED = "an input of another shape or dtype than the kernels' result would be of"
_any_autocast = torch._C._is_any_autocast_enabled


class ChannelGate:
    """The gates of any network, by parts.

    Args:
        network: of the module and its pooled map ``(N, C, 1, 1)``, or two of them with the pool ``"both"`` (mean and
            maximum); calls the module's own layers, and returns the gates, ``(N, C, 1, 1)``.
        pool: ``"mean"``, ``"max"``, ``"half"`` (of each, added up), ``"both"``, or what says so for a module.
        squeeze: the name of the child that pools in the plain forward, which is not called.
    """

    def __init__(
        self, network: Network, *, pool: str | Callable[[Any], str] = "mean", squeeze: str | None = None
    ) -> None:
        self.network, self.squeeze = network, squeeze
        self.pool: Callable[[Any], str] = pool if callable(pool) else lambda _: pool

    def obstacle(self, module: nn.Module) -> str | None:
        if self.squeeze is None:
            return None
        layer: Any = module._modules.get(self.squeeze)
        if type(layer) not in POOLS or layer.output_size not in (1, (1,), (1, 1), (1, 1, 1)):
            return f"{self.squeeze} is {type(layer).__name__}, expected an adaptive average pool to one value"
        return f"{self.squeeze} has hooks or a forward of its own" if is_touched(layer) else None

    def how(self, module: nn.Module) -> str:
        known = self.one_op(module)
        return "one op" if isinstance(known, tuple) else f"by parts, gates in PyTorch: {known}"

    def one_op(self, module: Any) -> Call | str:  # noqa: ARG002
        """The op that has the gate network inside, its weights and constants; or why there is none."""
        return "a network of its own"

    def __call__(self, module: Any, x: Tensor, *, shortcut: Tensor | None = None) -> Tensor | None:
        if (reason := self.obstacle(module)) is not None:
            backend.refuse(reason)
            return None
        if isinstance(known := self.one_op(module), tuple):
            op, weights, constants = known
            if (y := op.again(x, *weights, shortcut, *constants)) is not None:
                return y
            if not is_as_expected(x, shortcut) or not fits(x, weights):
                backend.refuse(UNEXPECTED)
                return None
            if not backend.use_triton(x, *weights, shortcut):
                return None
            return ops.serve(op, x, weights, shortcut, *constants)
        if not is_as_expected(x, shortcut):
            backend.refuse(UNEXPECTED)
            return None
        if not backend.use_triton(x, shortcut):
            return None
        return functional.gate_by(x, partial(self.network, module), shortcut, pool=self.pool(module))

    def takes_a_norm(self, module: nn.Module, activation: str) -> bool:  # noqa: ARG002
        """Whether a batch norm in front of it, and what activates between them, may be part of the op."""
        known = None if self.obstacle(module) is not None else self.one_op(module)
        return isinstance(known, tuple) and known[2][0] == "mean"

    def behind(
        self, module: Any, norm: nn.Module, x: Tensor, shortcut: Tensor | None = None, activation: str = "none"
    ) -> Tensor | None:
        """The output for ``activation(norm(x))``, which is never written; ``norm`` is of a class in ``layers.NORMS``.

        None where that is not for one op, and nothing has happened.
        """
        if self.obstacle(module) is not None or not isinstance(known := self.one_op(module), tuple):
            return None
        op, weights, (pool, *kinds) = known
        if pool != "mean" or x.dim() != 4 or not fits(x, weights):
            return None
        if op is ops.ECA:
            given, kinds = (weights[0], None, None, None), [NEIGHBOURS, "none", *kinds]
        else:
            given, kinds = weights, [DENSE, *kinds]  # type: ignore[assignment]
        return normed(norm, x, given, shortcut, *kinds, activation=activation, kind=type(norm))  # type: ignore[arg-type]


class Chain(ChannelGate):
    """The gates of layers that are called one after the other.

    Args:
        *layers: the names of the children, in the order of their calls.
        pool: as for :class:`ChannelGate`; with ``"both"`` mean and maximum go through the layers one by one, and what
            the last one is given is added up.
        squeeze: the name of the child that pools in the plain forward, which is not called.
        flat: whether the layers take ``(N, C)``, as linear ones do, and not ``(N, C, 1, 1)``.
    """

    def __init__(
        self,
        *layers: str,
        pool: str | Callable[[Any], str] = "mean",
        squeeze: str | None = None,
        flat: bool = False,
    ) -> None:
        super().__init__(self._call, pool=pool, squeeze=squeeze)
        self.layers, self.flat = layers, flat

    def _call(self, module: nn.Module, *pooled: Tensor) -> Tensor:
        *layers, last = self._layers(module)
        logits = None
        for vector in pooled:
            vector = vector.flatten(1) if self.flat else vector
            for layer in layers:
                vector = layer(vector)
            logits = vector if logits is None else logits + vector
        gates = last(logits)
        return gates[:, :, None, None] if self.flat else gates

    def _layers(self, module: nn.Module) -> list[nn.Module]:
        children = module._modules
        return [children[name] for name in self.layers]  # type: ignore[misc]

    def one_op(self, module: nn.Module) -> Call | str:
        return dense_layers(self._layers(module), self.pool(module))


def dense_layers(layers: Sequence[nn.Module], pool: str) -> Call | str:
    """The op for one or two dense layers, an activation between them or none, and a gate or none; or why there is none.

    An ``nn.Identity`` anywhere is nothing.
    """
    first: Any = None
    second: Any = None
    between = gate = None
    for layer in layers:
        if is_touched(layer):
            return f"hooks, or a forward of its own, on {type(layer).__name__}"
        kind = type(layer)
        if kind is nn.Identity:
            continue
        if kind is nn.Conv2d or kind is nn.Linear:
            if not is_dense(layer) or second is not None or (first is None and between is not None):
                return _network(layers)
            first, second = (layer, None) if first is None else (first, layer)
        elif second is None and between is None:
            between = layer
        elif second is not None and gate is None:
            gate = layer
        else:
            return _network(layers)
    if first is None:
        return _network(layers)
    if second is None:
        between, gate = None, between
    hidden = "none" if between is None else HIDDEN.get(type(between), unknown)(between)
    if hidden not in plain.HIDDEN_ACTIVATIONS:
        return f"{type(between).__name__} between the layers"
    last = "none" if gate is None else GATES.get(type(gate))
    if last not in plain.ACTIVATIONS:
        return f"{type(gate).__name__} as the gate"
    own = first._parameters
    weights = own["weight"], own["bias"], None, None
    if second is not None:
        own = second._parameters
        weights = *weights[:2], own["weight"], own["bias"]
    return ops.CHANNEL_GATE, weights, (pool, hidden, last)


def _network(layers: Sequence[nn.Module]) -> str:
    return f"a network of {' → '.join(type(layer).__name__ for layer in layers)}"


class Neighbours(ChannelGate):
    """The gates of a convolution over channels, then a gate; by parts with whatever else there is.

    Args:
        network: as for :class:`ChannelGate`.
        convolution, gate: the names of the children that one op computes.
        others: names of children that must be None for that.
    """

    def __init__(self, network: Network, convolution: str, gate: str, *others: str) -> None:
        super().__init__(network)
        self.convolution, self.gate, self.others = convolution, gate, others

    def one_op(self, module: Any) -> Call | str:
        children = module._modules
        convolution, gate = children[self.convolution], children[self.gate]
        if any(children.get(name) is not None for name in self.others):
            return "more than one convolution"
        if type(convolution) is not nn.Conv1d or is_touched(convolution) or is_touched(gate):
            return f"hooks, or a forward of its own, on {type(convolution).__name__} or {type(gate).__name__}"
        taps = convolution.weight.numel()
        if convolution.bias is not None or convolution.padding_mode != "zeros" or convolution.padding != (taps // 2,):
            return "a convolution with a bias or another padding"
        if tuple(convolution.weight.shape) != (1, 1, taps) or taps % 2 == 0 or convolution.dilation != (1,):
            return "a convolution that is not of neighbours, one channel to one"
        last = GATES.get(type(gate))
        if last not in plain.ACTIVATIONS:
            return f"{type(gate).__name__} as the gate"
        return ops.ECA, (convolution.weight,), (self.pool(module), last)


def is_as_expected(x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether an op's result is of the shape and dtype that the plain modules' would be of."""
    if x.dim() != 4 or x.dtype not in backend.DTYPES:
        return False
    if shortcut is not None and (shortcut.shape, shortcut.dtype, shortcut.device) != (x.shape, x.dtype, x.device):
        return False
    # Gates in autocast's dtype; their product with x is in the wider of both.
    return not _autocast(x) or torch.promote_types(x.dtype, torch.get_autocast_dtype(x.device.type)) == x.dtype


def fits(x: Tensor, weights: Sequence[Tensor | None]) -> bool:
    """Whether weights are made for x's channels, on its device, and of one dtype, which is x's or under autocast."""
    first = weights[0]
    assert first is not None
    if len(weights) == 4:
        (hidden, channels), second = first.shape[:2], weights[2]
        expected = (channels, channels) if second is None else (channels, hidden)
        if channels != x.shape[1] or tuple((first if second is None else second).shape[:2]) != expected:
            return False
    if any(weight is not None and (weight.dtype != first.dtype or weight.device != x.device) for weight in weights):
        return False
    return first.dtype == x.dtype or (_autocast(x) and first.dtype in backend.DTYPES)


def _autocast(x: Tensor) -> bool:
    return _any_autocast() and torch.is_autocast_enabled(x.device.type)
