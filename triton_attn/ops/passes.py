"""Passes over a map: what all kernels that make them are given, and the two that stand at the ends of an op.

These are the multiply, which writes y, and the last of the backward, which writes the gradients of x and the shortcut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..tuning import rules
from ..tuning.keys import Shape
from ..tuning.spaces import Config
from . import launch
from .layout import empty_map, row_stride, served
from .masks import empty_bits

Maps = Mapping[str, Tensor | None]
Start = Callable[..., None]
"""Starts a kernel over a map: takes the kernel, a map, its layout, ``Maps`` by their strides' names, and arguments."""
BitsOf = Callable[[Tensor, bool], Tensor]


def in_units(channels_last: bool, inner: int, **maps: Tensor | None) -> tuple[int, dict[str, int]]:
    """The launch arguments ``UNIT`` and ``stride_<map>n`` and ``stride_<map>o`` in units, 0 for a map that is None."""
    given = [t for t in maps.values() if t is not None]
    strides = {f"stride_{name}n": 0 if t is None else t.stride(0) for name, t in maps.items()}
    strides |= {f"stride_{name}o": 0 if t is None else row_stride(t, channels_last) for name, t in maps.items()}
    unit = rules.unit(given[0].itemsize, math.gcd(*(t.stride(0) for t in given)), inner, *strides.values())
    return unit, {"UNIT": unit, **{name: stride // unit for name, stride in strides.items()}}


def start_over(
    kernel: Any,
    like: Tensor,
    channels_last: bool,
    rule: Config,
    sizes: Mapping[str, tuple[int, str]],
    maps: Maps,
    **arguments: Any,
) -> None:
    """Start a kernel that has a program for every image of ``like`` and block of its axes, given the maps' strides.

    Args:
        kernel: takes the axes' sizes by name, that of rows in units, and ``stride_<map>n`` and ``stride_<map>o``.
        like: a map of the sizes, dtype and device.
        channels_last: its layout.
        rule: the config.
        sizes: of an axis its size, and what the config calls its block, "" where a program walks over all of it;
            channels first, what is inner of them last.
        maps: by the names that their strides have.
        **arguments: the kernel's others; ``beside`` are programs, the first ones, that do something else.
    """
    beside = arguments.get("beside", 0)
    inner = "channels" if channels_last and "channels" in sizes else list(sizes)[-1]
    unit, strides = in_units(channels_last, sizes[inner][0], **maps)

    def grid(config: Config) -> tuple[int, ...]:
        blocks = math.prod(rules.cdiv(size, config[block]) for size, block in sizes.values() if block)
        return (beside + like.shape[0] * blocks,)

    launch.tuned(
        kernel,
        grid,
        Shape.of(like, channels_last),
        rule,
        like.device,
        **arguments,
        **strides,
        **{name: size // unit if name == inner else size for name, (size, _) in sizes.items()},
        CHANNELS_LAST=channels_last,
    )


def start_by_spans(
    kernel: Any,
    like: Tensor,
    channels_last: bool,
    maps: Maps,
    rules_of: Callable[[int, int, bool], Config],
    /,
    **arguments: Any,
) -> None:
    """Start a kernel that has a program for every image of ``like``, block of channels and span of positions."""
    channels, positions = like.shape[1], like.shape[2] * like.shape[3]
    rule = rules_of(channels, positions, channels_last)
    sizes = {"channels": (channels, "BLOCK_C"), "positions": (positions, "SPAN")}
    start_over(kernel, like, channels_last, rule, sizes, maps, **arguments)


def room(
    x: Tensor, channels_last: bool, shortcut: Tensor | None, saves: bool, bits_of: BitsOf = empty_bits
) -> tuple[Tensor, Tensor | None]:
    """Room for y, and for the bits of ReLU's mask, where there is one that a backward wants."""
    return empty_map(x, channels_last), bits_of(x, channels_last) if saves and shortcut is not None else None


def room_bwd(
    x: Tensor, channels_last: bool, bits: Tensor | None, needed: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Room for the gradients of x and, where there are bits of a mask, of the shortcut; None where not ``needed``."""
    dx, dshortcut = (empty_map(x, channels_last) if each else None for each in (needed, needed and bits is not None))
    return dx, dshortcut


def multiply_fake(x: Tensor, *others: Any, bits_of: BitsOf = empty_bits) -> tuple[Tensor, Tensor | None]:
    """:func:`room` for a launcher whose last arguments are the shortcut, and whether anything is saved."""
    *_, shortcut, saves = others
    x, channels_last = served(x)
    return room(x, channels_last, shortcut, saves, bits_of)


def multiply(
    start: Start,
    kernel: Any,
    x: Tensor,
    channels_last: bool,
    shortcut: Tensor | None,
    saves: bool,
    bits_of: BitsOf = empty_bits,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """y of x, or ``relu(y + shortcut)`` and with ``saves`` the bits of its mask, by a kernel with these ``arguments``.

    It takes strides of y, x and s, the shortcut.
    """
    y, bits = room(x, channels_last, shortcut, saves, bits_of)
    given: dict[str, Any] = {"y_ptr": y, "bits_ptr": bits, "x_ptr": x, "shortcut_ptr": shortcut}
    given |= {"HAS_SHORTCUT": shortcut is not None, "SAVE_BITS": bits is not None}
    start(kernel, x, channels_last, {"y": y, "x": x, "s": shortcut}, **given, **arguments)
    return y, bits


def sums(
    start: Start,
    kernel: Any,
    grad: Tensor | None,
    x: Tensor,
    channels_last: bool,
    bits: Tensor | None,
    **arguments: Any,
) -> None:
    """Sums over a map and y's gradient, which is behind the mask that ``bits`` hold, by a kernel with these arguments.

    It takes strides of x, and of g, the gradient, which there may not be.
    """
    given: dict[str, Any] = {"x_ptr": x, "grad_ptr": grad, "bits_ptr": bits, "HAS_BITS": bits is not None}
    start(kernel, x, channels_last, {"x": x, "g": grad}, **given, **arguments)


def multiply_bwd(
    start: Start,
    kernel: Any,
    grad: Tensor,
    like: Tensor,
    channels_last: bool,
    bits: Tensor | None,
    reads: bool | None = None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of a map like this one, and with ``bits`` that of the shortcut, by a kernel with these arguments.

    It takes strides of d, the gradient of the map, of s, that of the shortcut, and of g, that of y. Unless ``reads`` is
    None, it takes x, the map itself, which it reads or not.
    """
    dx, dshortcut = room_bwd(like, channels_last, bits)
    maps: dict[str, Tensor | None] = {"d": dx, "s": dshortcut, "g": grad}
    if reads is not None:
        maps["x"] = arguments["x_ptr"] = like if reads else None
    given: dict[str, Any] = {"dx_ptr": dx, "dshortcut_ptr": dshortcut, "grad_ptr": grad, "bits_ptr": bits}
    start(kernel, like, channels_last, maps, **given, HAS_SHORTCUT=bits is not None, **arguments)
    assert dx is not None
    return dx, dshortcut
