"""What a config is chosen by: the kernel, the dtype, the layout, and how large the map is, roughly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .rules import power_of_two


class Shape(NamedTuple):
    """What a launch is given: a map's dtype, layout, channels and positions. Made at every launch, so it is cheap.

    Attention has two numbers of channels, those of q and k, and those of v.
    """

    dtype: torch.dtype
    channels_last: bool
    channels: tuple[int, ...]
    positions: int

    @classmethod
    def of(cls, x: Tensor, channels_last: bool) -> Shape:
        """That of a map ``(N, C, H, W)``."""
        return cls(x.dtype, channels_last, (x.shape[1],), x.shape[2] * x.shape[3])


@dataclass(frozen=True, order=True)
class Key:
    """What tables are looked up by. Sizes are powers of two, and the batch is none of them.

    Maps of nearly the same size share a config, and a last batch that is smaller is no other case.
    """

    kernel: str
    dtype: str
    layout: str
    channels: tuple[int, ...]
    positions: int

    @classmethod
    def of(cls, kernel: str, shape: Shape) -> Key:
        """The key that ``shape`` falls under."""
        return cls(
            kernel=kernel,
            dtype=str(shape.dtype).removeprefix("torch."),
            layout="channels_last" if shape.channels_last else "contiguous",
            channels=tuple(power_of_two(size) for size in shape.channels),
            positions=power_of_two(shape.positions),
        )

    def __str__(self) -> str:
        sizes = "+".join(map(str, self.channels))
        return f"{self.kernel}, {self.dtype}, {self.layout}, up to {sizes} channels × {self.positions} positions"
