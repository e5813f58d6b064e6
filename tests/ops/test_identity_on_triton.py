"""identity=True on Triton: exactly nothing at first, and the rule on numbers once the gates have learnt."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

import triton_attn
from tests.parity import DTYPES, check_block, clear_maxima, lay_out
from triton_attn.reference.identity import ZeroLayer
from triton_attn.registry import BLOCKS

pytestmark = pytest.mark.interpreter

NAMES = sorted(BLOCKS)
SIZES = {"cbam": {"reduction": 4}, "coordinate": {"reduction": 4}, "dual": {"reduction": 4}, "se": {"reduction": 4}}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_at_first(name: str, layout: str) -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        block = BLOCKS[name](32, identity=True).to(dtype)
        x, shortcut, grad = (lay_out(torch.randn(2, 32, 5, 7).to(dtype), layout) for _ in range(3))
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (entry,) = triton_attn.explain(block, x)
        assert entry.backend == "triton"
        y = block(leaf)
        assert torch.equal(y, x)
        dx, *others = torch.autograd.grad(y, [leaf, *block.parameters()], grad)
        assert torch.equal(dx, grad)
        assert any(each.any() for each in others), "nothing to learn from"
        if dtype != torch.bfloat16:  # whose sums the interpreter cuts off
            assert torch.equal(block(x, shortcut=shortcut), torch.relu(x + shortcut))


@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parity_once_it_has_learnt(name: str, with_shortcut: bool) -> None:
    def build(package: ModuleType) -> nn.Module:
        block = getattr(package, BLOCKS[name].__name__)(32, **SIZES.get(name, {}), identity=True)
        with torch.no_grad():
            for module in block.modules():
                if isinstance(module, ZeroLayer):
                    for parameter in module.parameters():
                        parameter.normal_(std=0.5)
        return block

    spatial = name in ("cbam", "dual")
    prepared = {"prepare": clear_maxima, "any_order": False} if spatial else {}
    for dtype, layout in ((torch.float32, "channels_last"), (torch.float16, "contiguous")):
        check_block(build, (2, 32, 5, 7), dtype, layout, with_shortcut=with_shortcut, **prepared)


@pytest.mark.parametrize("name", ["pixel", "gate"])
def test_wide_maps_and_signals(name: str) -> None:
    """Above 256 channels the library multiplies, and the multiply by its logits is another kernel's."""
    torch.manual_seed(0)
    block = BLOCKS[name](272, identity=True)
    x = torch.randn(1, 272, 3, 5)
    assert torch.equal(block(x), x)
    if name == "gate":
        for channels in (32, 272):
            block = BLOCKS[name](channels, gating_channels=8, identity=True)
            x, gating = torch.randn(1, channels, 4, 6), torch.randn(1, 8, 2, 3)
            assert torch.equal(block(x, gating), x)
            nn.init.normal_(block.psi.weight)
            with triton_attn.use_backend("reference"):
                expected = block(x, gating)
            torch.testing.assert_close(block(x, gating), expected, rtol=1e-4, atol=1e-5)
