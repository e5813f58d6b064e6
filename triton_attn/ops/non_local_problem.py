"""What non-local attention is given, as its kernels take it, and the room for what they write.

Launch arguments that all kernels take come from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from .. import backend
from ..tuning import attention_rules, chips, rules
from ..tuning.keys import Shape
from .layout import empty_map, memory_format, served

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Problem:
    """q, k and v as the kernels take them: of one layout, without a copy where they came so."""

    q: Tensor
    k: Tensor
    v: Tensor
    channels_last: bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """d, dv, L, S."""
        return self.q.shape[2], self.v.shape[2], self.q.shape[1], self.k.shape[1]

    @property
    def shape(self) -> Shape:
        """What a launch goes by."""
        return Shape(self.q.dtype, self.channels_last, (self.q.shape[2], self.v.shape[2]), self.q.shape[1])

    @property
    def keeps_rows(self) -> bool:
        """Whether the softmax is kept for the backward."""
        return attention_rules.keeps_rows(*self.sizes) or self.by_library

    @property
    def by_library(self) -> bool:
        """Whether they are too long for a tile, and the library's products make them."""
        return attention_rules.by_library(*self.sizes, self.q.itemsize)

    @property
    def counts_again(self) -> bool:
        """Whether the tiled backward computes rows' sums again, for exactness, and keeps nothing of the forward's."""
        return self.q.itemsize == 4

    @property
    def read(self) -> dict[str, Tensor]:
        """What kernels of products read, by the names of its strides."""
        return {"q": self.q, "k": self.k, "v": self.v}

    @property
    def factors(self) -> tuple[int, int, int, chips.Chip, bool]:
        """What the rules of kernels of products go by: d, dv, an element's bytes, the chip, the layout."""
        width, value_width, *_ = self.sizes
        return width, value_width, self.q.itemsize, chips.chip_of(self.q.device), self.channels_last

    def arguments(self, scale: float) -> dict[str, Any]:
        """The launch arguments of every kernel of products, but for sizes and strides."""
        return {
            **{f"{name}_ptr": t for name, t in self.read.items()},
            # The kernels take maxima of scores, and so want the scale positive.
            "scale": abs(scale) * LOG2_E,
            "NEGATIVE": scale < 0,
            "CHANNELS_LAST": self.channels_last,
            # The interpreter cannot multiply in bfloat16.
            "UPCAST": backend.interpreting(),
            "PRECISION": chips.precision(self.v.dtype, chips.chip_of(self.q.device)),
        }


def problem(q: Tensor, k: Tensor | None, v: Tensor | None, value_width: int, channels_last: bool | None) -> Problem:
    """The problem that the arguments of an op state; without a map to follow, of the layout of ``q``."""
    if k is None or v is None:
        q, k, v = q.split(split_sizes(q, value_width), dim=2)
    if channels_last is None:
        channels_last = q.stride(2) == 1 or q.stride(1) != 1
    q, k, v = (laid_out(t, channels_last) for t in (q, k, v))
    return Problem(q, k, v, channels_last)


def split_sizes(packed: Tensor, value_width: int) -> list[int]:
    """The widths of q, k and v, side by side."""
    width = (packed.shape[2] - value_width) // 2
    return [width, width, value_width]


def laid_out(t: Tensor, channels_last: bool) -> Tensor:
    """``(N, positions, channels)`` with channels contiguous in memory, or positions; copied only where it is not so."""
    inner, outer = (2, 1) if channels_last else (1, 2)
    if (t.stride(inner) == 1 or t.shape[inner] == 1) and (t.shape[outer] == 1 or t.stride(outer) >= t.shape[inner]):
        return t
    return t.contiguous() if channels_last else t.transpose(1, 2).contiguous().transpose(1, 2)


def empty_rows(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """An uninitialised ``(N, positions, channels)`` of the given layout, densely."""
    if channels_last:
        return torch.empty(shape, dtype=dtype, device=t.device)
    return torch.empty((shape[0], shape[2], shape[1]), dtype=dtype, device=t.device).transpose(1, 2)


@overload
def map_rows(t: Tensor) -> Tensor: ...
@overload
def map_rows(t: None) -> None: ...
def map_rows(t: Tensor | None) -> Tensor | None:
    """A map ``(N, C, H, W)`` as ``(N, H·W, C)``, which is a view in the layouts served; what is no map stays."""
    return t if t is None or t.dim() == 3 else t.flatten(2).transpose(1, 2)


def in_units(sizes: Problem, **tensors: Tensor | None) -> dict[str, int]:
    """The launch arguments ``UNIT`` and ``WIDE``, the sizes, and ``stride_<name>n`` and ``…o`` in units."""
    outer = 1 if sizes.channels_last else 2
    strides, batch_strides, reach = (
        dict.fromkeys((f"stride_{name}{axis}" for name in tensors for axis in "no"), 0),
        [],
        0,
    )
    for name, t in tensors.items():
        if t is not None:
            step = 0 if t.shape[outer] == 1 else t.stride(outer)
            # An image by itself may have any batch stride: here that of a batch, so that it takes the same program.
            batch_step = t.stride(0) if t.shape[0] > 1 else step * t.shape[outer]
            strides[f"stride_{name}n"], strides[f"stride_{name}o"] = batch_step, step
            batch_strides.append(batch_step)
            # Tiles end up to 512 rows behind their tensor: what lies there is masked, but its offset must not wrap.
            reach = max(reach, step * (t.shape[outer] + 512))
    d, dv, length, source = sizes.sizes
    contiguous = (d, dv) if sizes.channels_last else (length, source)
    unit = rules.unit(sizes.q.itemsize, math.gcd(*batch_strides), *contiguous, *strides.values())
    names = ("width", "value_width") if sizes.channels_last else ("length", "source")
    return {
        "UNIT": unit,
        "WIDE": reach >= 2**31,
        "width": d,
        "value_width": dv,
        "length": length,
        "source": source,
        **{name: size // unit for name, size in zip(names, contiguous, strict=True)},
        **{name: stride // unit for name, stride in strides.items()},
    }


@dataclass(frozen=True)
class Output:
    """Room for what a forward writes, beside the maps that it reads. ``kept`` is o (tiled) or the softmax."""

    given: Problem
    x: Tensor | None
    shortcut: Tensor | None
    y: Tensor
    kept: Tensor | None
    norms: Tensor | None
    bits: Tensor | None

    @property
    def results(self) -> tuple[Tensor | None, ...]:
        """The op's, in the order of its schema."""
        return self.y, self.kept, self.norms, self.bits

    @property
    def maps(self) -> dict[str, Tensor | None]:
        """What has strides, by their names."""
        return {"y": map_rows(self.y), "x": map_rows(self.x), "s": map_rows(self.shortcut), **self.given.read}

    def arguments(self, bias: Tensor | None, scale: float) -> dict[str, Any]:
        """The launch arguments that both kernels take, but for sizes and strides."""
        return {
            "y_ptr": self.y,
            "bits_ptr": self.bits,
            "x_ptr": self.x,
            "bias_ptr": bias,
            "shortcut_ptr": self.shortcut,
            "HAS_X": self.x is not None,
            "HAS_BIAS": bias is not None,
            "HAS_SHORTCUT": self.shortcut is not None,
            "SAVE_BITS": self.bits is not None,
            **self.given.arguments(scale),
        }


def output(
    x: Tensor | None, q: Tensor, k: Tensor | None, v: Tensor | None, shortcut: Tensor | None, saves: bool
) -> Output:
    """Room for the output of an op with these arguments."""
    channels_last = None
    if x is not None:
        x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    given = problem(q, k, v, 0 if x is None else x.shape[1], channels_last)
    batch, length, dtype = q.shape[0], q.shape[1], given.v.dtype
    kept = norms = bits = None
    shape = (batch, length, given.v.shape[2])
    if x is None:
        y = empty_rows(q, shape, dtype, given.channels_last)
    else:
        y = empty_map(x, given.channels_last)
        if torch.promote_types(x.dtype, dtype) != x.dtype:
            y = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format(given.channels_last))
    if saves and given.keeps_rows:
        kept = torch.empty((batch, length, attention_rules.pitch(given.k.shape[1])), dtype=dtype, device=q.device)
    elif saves and not given.counts_again:
        # Without a map the output is what was attended.
        kept = None if x is None else empty_rows(q, shape, dtype, given.channels_last)
        norms = torch.empty((batch, 2, length), dtype=torch.float32, device=q.device)
    if saves and shortcut is not None:
        outer, inner = (length, shape[2]) if given.channels_last else (shape[2], length)
        bits = torch.empty((batch, outer, rules.cdiv(inner, 8)), dtype=torch.uint8, device=q.device)
    return Output(given, x, shortcut, y, kept, norms, bits)


@dataclass(frozen=True)
class Gradients:
    """Room for the masked gradient (behind a ReLU) and those of q, k and v, each None where it is not needed."""

    masked: Tensor | None
    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    packed: Tensor | None = None  # of which those of q, k and v are parts

    @property
    def results(self) -> tuple[Tensor | None, ...]:
        """The op's, in the order of its schema."""
        return (self.masked, self.q, self.k, self.v) if self.packed is None else (self.masked, self.packed, None, None)


def gradients(given: Problem, grad: Tensor, q: Tensor, packed: bool, masks: bool, needs: Sequence[bool]) -> Gradients:
    """Room for the gradients of q (or of all three, ``packed`` as ``q`` is), k and v."""
    masked = None
    if masks:
        layout = memory_format(given.channels_last)
        masked = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    if packed:
        if not needs[0]:
            return Gradients(masked, None, None, None)
        together = empty_rows(q, tuple(q.shape), q.dtype, given.channels_last)
        q, k, v = together.split(split_sizes(together, given.v.shape[2]), dim=2)
        return Gradients(masked, q, k, v, together)
    read = zip(given.read.values(), needs, strict=True)
    own = (empty_rows(t, tuple(t.shape), t.dtype, given.channels_last) if needed else None for t, needed in read)
    return Gradients(masked, *own)
