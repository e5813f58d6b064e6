"""explain says what really served each block, and changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import triton_attn
from triton_attn.explain import outermost_blocks
from triton_attn.reference.resnet import Bottleneck


def test_every_block_of_a_network() -> None:
    model = triton_attn.resnet18({"stem": "nonlocal", "block": "se"}, num_classes=2).train()
    before = copy.deepcopy(model.state_dict())
    found = triton_attn.explain(model, torch.randn(2, 3, 32, 32))
    assert [entry.name for entry in found] == [
        "attention.stem",
        *(f"layer{stage}.{i}.attention" for stage in range(1, 5) for i in range(2)),
    ]
    assert {entry.backend for entry in found} == {"reference"}
    assert found[0].block == "NonLocalBlock"
    assert "cpu" in found[0].reason
    assert "cpu" in found[1].reason
    assert model.training
    assert model.layer1[0].bn1.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(block._forward_hooks or block._forward_pre_hooks for _, block in outermost_blocks(model))


def test_a_block_by_itself_and_a_plain_twin() -> None:
    x = torch.randn(1, 32, 4, 4)
    (entry,) = triton_attn.explain(triton_attn.reference.SEBlock(32), x)
    assert (entry.name, entry.backend) == ("(itself)", "reference")
    assert "plain twin" in entry.reason


def test_the_two_forms_of_a_name() -> None:
    x = torch.randn(1, 32, 4, 4)
    for module in (triton_attn, triton_attn.reference):
        assert triton_attn.explain(module.CBAM(32), x)[0].block == "CBAM"
        assert triton_attn.explain(module.published.CBAM(32), x)[0].block == "published.CBAM"


def test_it_prints_as_a_table() -> None:
    text = str(triton_attn.explain(triton_attn.SEBlock(32), torch.randn(1, 32, 4, 4)))
    assert text.splitlines()[0].split() == ["module", "block", "backend", "why"]
    assert "SEBlock" in text


def test_asking_for_triton_raises_nothing_here() -> None:
    with triton_attn.use_backend("triton"):
        (entry,) = triton_attn.explain(triton_attn.ECABlock(32), torch.randn(1, 32, 4, 4))
    assert entry.backend == "reference"


def test_a_failing_forward_leaves_no_hook_and_no_mode_behind() -> None:
    block = triton_attn.SEBlock(32).train()
    with pytest.raises(ValueError, match="32 channels"):
        triton_attn.explain(block, torch.randn(1, 31, 4, 4))
    assert block.training
    assert not block._forward_hooks


@pytest.mark.interpreter
def test_the_interpreter_counts_as_a_gpu() -> None:
    (entry,) = triton_attn.explain(triton_attn.SEBlock(8, 2), torch.randn(1, 8, 4, 4))
    assert entry.backend == "triton"
    assert "interpreter" in entry.reason
    (entry,) = triton_attn.explain(triton_attn.SEBlock(8, 2).double(), torch.randn(1, 8, 4, 4).double())
    assert entry.backend == "reference"


@pytest.mark.interpreter
def test_the_batch_norm_that_goes_with_a_block_and_attention_behind_both() -> None:
    block = Bottleneck(16, 4, attention=lambda channels: triton_attn.SEBlock(channels, 4))
    block.attend_after(triton_attn.CBAM)
    found = triton_attn.explain(nn.Sequential(block), torch.randn(1, 16, 4, 4))
    assert [(each.name, each.block) for each in found] == [("0.attention", "SEBlock"), ("0.after.attention", "CBAM")]
    assert found[0].reason == f"{found[1].reason}, with the batch norm in front"
    for each in (triton_attn.published.CoordinateAttention, triton_attn.published.CBAM):
        block.attention = each(16)
        assert triton_attn.explain(block, torch.randn(1, 16, 4, 4))[0].reason == found[0].reason
    block.attention = triton_attn.SEBlock(16, 4)
    block.bn3.register_forward_hook(lambda *_: None)
    reason = triton_attn.explain(block, torch.randn(1, 16, 4, 4))[0].reason
    assert reason == f"{found[1].reason}; compiled, the plain formula: its batch norm cannot be part of the op"


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (triton_attn.published.NonLocal(16, mode="dot_product"), "mode='dot_product' is products of the library alone"),
    ],
)
def test_what_has_no_kernel_is_told_and_refused(block: triton_attn.reference.AttentionBlock, reason: str) -> None:
    x = torch.randn(1, 16, 4, 4)
    expected = block(x)
    (entry,) = triton_attn.explain(block, x)
    assert entry.backend == "reference"
    assert reason in entry.reason
    with triton_attn.use_backend("reference"):
        assert triton_attn.explain(block, x)[0].reason == "asked for"
        assert torch.equal(block(x), expected)
    with triton_attn.use_backend("triton"), pytest.raises(triton_attn.BackendError, match=reason):
        block(x)
