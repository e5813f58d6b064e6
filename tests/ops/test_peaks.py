"""Maxima and where they are, in parts and whole, to the last bit: ties, NaN, infinities, tiles with a tail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.parity import lay_out
from triton_attn.tuning import rules

pytestmark = pytest.mark.interpreter

NAN_IS = -(2**31 - 1)
# Pairs of tiles and a tail; an odd tile, and a part of one position; parts that come in turns; less than a tile.
SHAPES = ((2, 5, 9, 14), (1, 3, 27, 19), (1, 2, 66, 64), (1, 70, 3, 5))


def expected(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima of (N, C, H, W), and each one's position where it is once, else minus how often it is there."""
    flat = x.flatten(2)
    peak = flat.amax(2)
    ties = (flat == peak[:, :, None]).sum(2)
    winner = torch.where(ties == 1, flat.argmax(2), -ties)
    return peak, torch.where(peak.isnan(), NAN_IS, winner).int()


def drawn(shape: tuple[int, ...]) -> Tensor:
    """A map of few values, in which images and channels differ in kind."""
    _, channels, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(shape)
    x[:, 1::2] = x[:, 1::2].mul(2).round()
    x[0, 0] = -1e30  # beneath the 0 that a masked element is read as
    x[0, 0, -1, -1] = -1e29
    x[-1, 1] = -torch.inf
    x[-1, -1, height // 2, width // 3] = torch.nan
    if channels > 3:
        x[-1, -1, 0, 0] = torch.inf
        x[0, 2] = -torch.inf
        x[0, 2, height // 2, 1] = -5.0
        x[0, 3, -1] = x[0, 3, 0] = torch.inf
        x[-1, 3] = 0.0
        x[-1, 3, :, ::2] = -0.0
    return x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_maxima(
    shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str, signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton_attn.ops import gating

    blocks = rules.whole
    monkeypatch.setattr(rules, "whole", lambda *sizes: {**blocks(*sizes), "BLOCK_S": min(blocks(*sizes)["BLOCK_S"], 4)})
    x = lay_out(drawn(shape).to(dtype), layout)
    weight = torch.tensor([1.0, -1.0]).repeat(shape[1])[: shape[1]] if signed else None
    sought = (x if weight is None else x * weight[:, None, None].to(dtype)).float()
    peak, winner = expected(sought)
    for pool in ("max", "both"):
        for saves in (False, True):
            parts = gating.squeeze(x, layout == "channels_last", pool, saves=saves, weight=weight)
            found = gating.whole(parts, shape[2] * shape[3], pool, saves)
            torch.testing.assert_close(found.peak, peak, atol=0.0, rtol=0.0, equal_nan=True)
            if saves:
                assert torch.equal(found.winner, winner)
            if pool == "both" and not signed:
                torch.testing.assert_close(found.mean, sought.mean((2, 3)), equal_nan=True)
