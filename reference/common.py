"""What every block shares: the checks on its input and the tail of a residual block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .activations import ONE_AT_ZERO
from .tracing import as_leaf, node

Device = torch.device | str | None
DType = torch.dtype | None
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class AttentionBlock(nn.Module):
    """An attention block: takes ``(N, C, H, W)``, returns the same shape, dtype and layout.

    Whoever traces a network by ``torch.fx`` finds it as one node, whatever its class.

    Args:
        identity: whether it is built to change nothing at first.
        gate: the last step of its gate, if it has one; with ``identity`` it is that step's kin that makes 1 of 0.
        hands_on: of a subclass, whether its forward gives what it knows nothing of to the one above as it came, so that
            it need not look for a trace itself.
    """

    def __init__(self, identity: bool = False, gate: str | None = None) -> None:
        super().__init__()
        self.identity = identity
        if gate is not None:
            self.activation = ONE_AT_ZERO[gate] if identity else gate

    def __init_subclass__(cls, hands_on: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in cls.__dict__ and not hands_on:
            cls.forward = as_leaf(cls.forward)

    def extra_repr(self) -> str:
        return "identity=True" if self.identity else ""

    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """The attention this block pays to ``x``, by kind, for looking at.

        ``"channel"`` is ``(N, C, 1, 1)``, ``"spatial"`` ``(N, 1, H, W)``, ``"pixel"`` ``(N, C, H, W)``.
        A block may have several kinds (CBAM) or none of these (non-local, which has ``attention_from``).
        """
        raise TypeError(f"{type(self).__name__} does not define attention_maps")

    def behind(self, norm: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor | None:  # noqa: ARG002
        """``self(norm(x), shortcut)`` in one, where that is possible; else None, and nothing has happened."""
        return None


class ReducingBlock(AttentionBlock):
    """A block whose gate networks squeeze ``C`` channels to ``C // reduction``: ``_build`` makes the layers."""

    _gate: str | None = None  # as of :class:`AttentionBlock`

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        *,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(identity, self._gate)
        self._build(in_channels, reduction, device=device, dtype=dtype)

    def _build(self, in_channels: int, reduction: int, **where: Any) -> None:
        raise NotImplementedError


def hidden_width(channels: int, reduction: int, given: int | None = None) -> int:
    """The hidden channels that were given, or ``channels // reduction``.

    Raises:
        ValueError: an argument is not a positive integer, or no hidden channel is left.
    """
    positive("channels", channels)
    if given is not None:
        positive("hidden_channels", given)
        return given
    positive("reduction", reduction)
    hidden = channels // reduction
    if hidden == 0:
        raise ValueError(
            f"reduction={reduction} leaves no hidden channel: {channels} channels // {reduction} = 0, "
            "expected at least 1"
        )
    return hidden


def positive(name: str, value: object) -> None:
    """Raise a ValueError that names the argument unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def odd(name: str, value: object) -> None:
    """Raise a ValueError that names the argument unless ``value`` is an odd integer of at least 1."""
    positive(name, value)
    if isinstance(value, int) and value % 2 == 0:
        raise ValueError(f"{name} must be odd, got {value}")


def is_autocast(t: Tensor) -> bool:
    """Whether autocast is in force where this tensor lies. Of tensors without data PyTorch cannot be asked."""
    return t.device.type != "meta" and torch.is_autocast_enabled(t.device.type)


def check_map(
    x: Tensor,
    channels: int | None,
    parameter: Tensor | None,
    shortcut: Tensor | None = None,
    *,
    name: str = "x",
) -> None:
    """Check a block's input before any arithmetic starts.

    Args:
        x: the feature map, ``(N, C, H, W)``, floating point.
        channels: the channel count ``C`` that the block was built for, or None for any.
        parameter: one of the block's parameters, whose device and (outside autocast) dtype ``x`` must share; None for
            a block that has none.
        shortcut: what is added behind the block, of ``x``'s shape and device.
        name: what the caller calls ``x``.

    Raises:
        TypeError: not a tensor, not a floating-point one, or not of the parameters' dtype.
        ValueError: wrong number of dimensions, channel count, device, or shape of the shortcut.
    """
    if isinstance(x, Proxy):
        return  # a trace has no numbers
    expected = f"(N, {'C' if channels is None else channels}, H, W)"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {expected}, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name} must be 4-D, {expected}, got shape {tuple(x.shape)}")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"{name} must have {channels} channels, {expected}, got shape {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if parameter is not None and x.device != parameter.device:
        raise ValueError(f"{name} is on {x.device}, but the block's parameters are on {parameter.device}")
    if parameter is not None and x.dtype != parameter.dtype and not is_autocast(x):
        raise TypeError(
            f"{name} is {x.dtype}, but the block's parameters are {parameter.dtype}: convert one of them, "
            "or use torch.autocast"
        )
    if shortcut is None:
        return
    if not isinstance(shortcut, Tensor):
        raise TypeError(f"shortcut must be a torch.Tensor of {name}'s shape, got {type(shortcut).__name__}")
    if shortcut.shape != x.shape:
        raise ValueError(f"shortcut must have {name}'s shape {tuple(x.shape)}, got {tuple(shortcut.shape)}")
    if shortcut.dtype not in FLOATS:
        raise TypeError(f"shortcut must be float16, bfloat16, float32 or float64, got {shortcut.dtype}")
    if shortcut.device != x.device:
        raise ValueError(f"shortcut is on {shortcut.device}, but {name} is on {x.device}")


def add_shortcut(y: Tensor, shortcut: Tensor | None) -> Tensor:
    """``relu(y + shortcut)``, the tail of a residual block, or ``y`` itself without a shortcut."""
    if isinstance(shortcut, Proxy):
        return node(add_shortcut, y, shortcut)
    return y if shortcut is None else F.relu(y + shortcut)
