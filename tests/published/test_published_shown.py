"""What the published blocks attend, for looking at: panels of every one, and rows of the attention matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import triton_attn
from triton_attn.reference import published
from triton_attn.registry import PUBLISHED
from triton_attn.train.attention_maps import read_attention

ROWS = {"published.nonlocal", "published.position", "published.danet"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_block_is_shown(name: str) -> None:
    torch.manual_seed(0)
    block = triton_attn.create_attention(name, 32)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (site,) = read_attention(model, torch.randn(3, 17, 15), [(5, 4), (14, 12)]).sites
    assert site.panels
    assert all(panel.values.shape == (9, 8) and panel.values.isfinite().all() for panel in site.panels)
    assert ([panel.cell for panel in site.panels] == [(2, 2), (7, 6)]) == (name in ROWS)


@pytest.mark.parametrize(("mode", "scale"), [("embedded_gaussian", 0.5), ("gaussian", None), ("dot_product", 2.0)])
def test_rows_of_non_local(mode: str, scale: float | None) -> None:
    torch.manual_seed(0)
    block, x = published.NonLocal(6, 4, mode=mode, scale=scale, subsample=False, norm=False), torch.randn(2, 6, 4, 5)
    nn.init.dirac_(block.out.weight)
    rows = block.attention_from(x, [(0, 1), (3, 4)])
    values = block.g(x).flatten(2)
    expected = (block(x) - x)[:, :4].flatten(2)[:, :, [1, 19]]
    torch.testing.assert_close(values @ rows.flatten(2).transpose(1, 2), expected)


def test_rows_of_fewer_keys() -> None:
    """Each pooled key's weight is shared by the four positions of it."""
    torch.manual_seed(0)
    block, x = published.NonLocal(6, 4), torch.randn(1, 6, 4, 6)
    rows = block.attention_from(x, [(2, 3)])
    q, k, _ = block.project(x)
    weights = torch.softmax(q[:, 15:16] @ k.transpose(1, 2), -1).view(1, 1, 2, 3)
    torch.testing.assert_close(rows, weights.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4)


def test_rows_of_position_attention_and_a_position_that_is_not_there() -> None:
    torch.manual_seed(0)
    block, x = published.PositionAttention(8), torch.randn(1, 8, 3, 4)
    nn.init.ones_(block.gamma)
    rows = block.attention_from(x, [(2, 3)])
    attended = (block.value_conv(x).flatten(2) @ rows.flatten(2).transpose(1, 2))[0, :, 0]
    torch.testing.assert_close(attended, (block(x) - x)[0, :, 2, 3])
    with pytest.raises(ValueError, match=r"3×4 map, got \(3, 0\)"):
        block.attention_from(x, [(3, 0)])
