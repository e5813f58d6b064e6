"""ECA as published: the tutorial's formula, with a kernel that grows with the channels.

Source: Wang et al., "ECA-Net", https://arxiv.org/abs/1910.03151
"""

from __future__ import annotations

from .. import eca
from ..common import Device, DType


class ECABlock(eca.ECABlock):
    """``x · σ(conv1d over channels of mean_hw x)``, zero-padded, without a bias.

    Args:
        channels: ``C``, the channels of the map.
        kernel_size: odd; None takes the paper's adaptive size.
        identity: change nothing at first: the gate is ``2σ``, and the convolution starts at 0.
        device, dtype: where and in what type the parameter is made.

    Raises:
        ValueError: ``kernel_size`` is even or not positive.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        *,
        identity: bool = False,
        device: Device = None,
        dtype: DType = None,
    ) -> None:
        super().__init__(channels, kernel_size, identity=identity, device=device, dtype=dtype)
