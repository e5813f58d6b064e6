"""The published twins beside timm's own modules with the same weights, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from triton_attn.reference import published

pytest.importorskip("timm", reason="timm is not installed")
from timm.layers import EcaModule, GlobalContext
from timm.layers.cbam import CbamModule
from timm.layers.coord_attn import CoordAttn
from timm.layers.non_local_attn import NonLocalAttn


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """timm's names in place of ours, and dense layers as 1×1 convolutions."""
    found = {}
    for key, value in state.items():
        name, _, last = key.rpartition(".")
        value = value[..., None, None] if name.startswith("fc") and value.dim() == 2 else value
        found[f"{names.get(name, name)}.{last}"] = value
    return found


def cbam() -> tuple[nn.Module, nn.Module]:
    ours, theirs = published.CBAM(16, hidden_channels=3, bias=False), CbamModule(16, rd_channels=3)
    names = {"fc1": "channel.fc1", "fc2": "channel.fc2", "conv": "spatial.conv.conv", "norm": "spatial.conv.bn"}
    state = renamed(ours.state_dict(), names)
    state["spatial.conv.conv.weight"] = state["spatial.conv.conv.weight"].flip(1)  # mean, max
    theirs.load_state_dict(state)
    return ours, theirs


def coordinate() -> tuple[nn.Module, nn.Module]:
    ours, theirs = published.CoordinateAttention(16, bias=False), CoordAttn(16, rd_channels=8)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def non_local() -> tuple[nn.Module, nn.Module]:
    ours, theirs = published.NonLocal(16, 8, scale=16**-0.5, subsample=False), NonLocalAttn(16, rd_channels=8)
    nn.init.normal_(ours.norm.weight)
    theirs.load_state_dict(renamed(ours.state_dict(), {"theta": "t", "phi": "p", "out": "z"}))
    return ours, theirs


def global_context() -> tuple[nn.Module, nn.Module]:
    ours, theirs = published.GlobalContext(16, hidden_channels=4), GlobalContext(16, rd_channels=4)
    names = {"conv": "conv_attn", **{name: f"mlp_scale.{name}" for name in ("fc1", "norm", "fc2")}}
    theirs.load_state_dict(renamed(ours.state_dict(), names))
    return ours, theirs


def eca() -> tuple[nn.Module, nn.Module]:
    ours, theirs = published.ECABlock(256), EcaModule(256)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [cbam, coordinate, non_local, global_context, eca])
def test_values_and_gradients(make, training):
    torch.manual_seed(0)
    ours, theirs = (block.double().train(training) for block in make())
    x = torch.randn(3, 256 if make is eca else 16, 6, 5, dtype=torch.float64).requires_grad_()
    grad = torch.randn_like(x)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    (da,), (db,) = torch.autograd.grad(a, x, grad), torch.autograd.grad(b, x, grad)
    torch.testing.assert_close(da, db, rtol=1e-8, atol=1e-10)


def test_the_widths_timm_takes_by_default():
    """What to pass as ``hidden_channels`` for weights of timm's."""
    assert CoordAttn(64).conv1.out_channels == 8 == published.CoordinateAttention(64).conv1.out_channels
    assert CoordAttn(512).conv1.out_channels == 24  # round to a multiple of 8 of 512 / 16 · 2/3
    assert NonLocalAttn(64).t.out_channels == 8
