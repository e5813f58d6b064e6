"""The position gates' functions check what they are given, and give what the blocks give."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from triton_attn import functional


def arguments(name: str) -> dict[str, torch.Tensor]:
    weights = {"weight1": (2, 8, 1, 1), "bias1": (2,), "weight2": (8, 2, 1, 1), "bias2": (8,)}
    if name == "attention_gate":
        weights |= {"weight2": (2, 5, 1, 1), "bias2": (2,), "psi_weight": (1, 2, 1, 1), "psi_bias": (1,)}
        weights["gating"] = (2, 5, 2, 2)
    return {"x": torch.randn(2, 8, 3, 5)} | {key: torch.randn(shape) for key, shape in weights.items()}


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_the_functions_are_the_blocks(with_shortcut: bool) -> None:
    x, gating = torch.randn(2, 16, 3, 5), torch.randn(2, 4, 2, 2)
    shortcut = torch.randn(2, 16, 3, 5) if with_shortcut else None
    pixel, gate, gated = (
        triton_attn.AttentionModule(16),
        triton_attn.AttentionGate(16),
        triton_attn.AttentionGate(16, gating_channels=4),
    )
    assert torch.equal(functional.pixel_attention(x, *pixel.weights(), shortcut), pixel(x, shortcut))
    assert torch.equal(functional.attention_gate(x, *gate.weights(), shortcut=shortcut), gate(x, shortcut=shortcut))
    assert torch.equal(functional.attention_gate(x, *gated.weights(), gating, shortcut), gated(x, gating, shortcut))


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("both", {"x": torch.randn(2, 8, 3)}, ValueError, r"x must be 4-D, \(N, 8, H, W\), got shape \(2, 8, 3\)"),
        ("both", {"x": torch.randn(2, 7, 3, 5)}, ValueError, r"x must have 8 channels"),
        ("both", {"x": torch.ones(2, 8, 3, 5, dtype=torch.int32)}, TypeError, r"x must be float16.*got torch.int32"),
        ("both", {"x": torch.randn(2, 8, 3, 5).half()}, TypeError, r"x is torch.float16, but .*torch.float32"),
        ("both", {"x": torch.randn(2, 8, 3, 5, device="meta")}, ValueError, r"x is on meta"),
        ("both", {"weight1": torch.randn(2, 8)}, ValueError, r"weight1 must be \(m, C, 1, 1\), got shape \(2, 8\)"),
        ("both", {"weight1": torch.randn(2, 8, 3, 3)}, ValueError, r"weight1 must be \(m, C, 1, 1\)"),
        ("both", {"weight1": torch.randn(0, 8, 1, 1)}, ValueError, r"weight1 must be .* both at least 1"),
        ("both", {"bias1": torch.randn(3)}, ValueError, r"bias1 must be \(2,\)"),
        ("both", {"bias2": torch.randn(8).double()[:2]}, (TypeError, ValueError), r"bias2"),
        ("both", {"shortcut": torch.randn(2, 8, 3, 4)}, ValueError, r"shortcut must have x's shape \(2, 8, 3, 5\)"),
        ("pixel_attention", {"weight2": torch.randn(2, 8, 1, 1)}, ValueError, r"weight2 must be \(8, 2, 1, 1\)"),
        ("pixel_attention", {"bias2": torch.randn(8, device="meta")}, ValueError, r"bias2 is on meta"),
        ("attention_gate", {"weight2": torch.randn(3, 5, 1, 1)}, ValueError, r"weight2 must be \(2, 5, 1, 1\)"),
        ("attention_gate", {"psi_weight": torch.randn(2, 2, 1, 1)}, ValueError, r"psi_weight must be \(1, 2, 1, 1\)"),
        ("attention_gate", {"psi_bias": torch.randn(2)}, ValueError, r"psi_bias must be \(1,\)"),
        ("attention_gate", {"gating": torch.randn(2, 4, 2, 2)}, ValueError, r"gating must have 5 channels"),
        ("attention_gate", {"gating": torch.randn(3, 5, 2, 2)}, ValueError, r"gating must have x's batch size 2"),
        ("attention_gate", {"gating": None}, ValueError, r"gating must be given, \(N, 5, H, W\)"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_errors_name_the_argument(name: str, changes: dict, error: type[Exception], message: str, backend: str) -> None:
    """The same errors whatever backend is asked for: the checks come before the choice."""
    for each in ("pixel_attention", "attention_gate") if name == "both" else (name,):
        with triton_attn.use_backend(backend), pytest.raises(error, match=message):
            getattr(functional, each)(**{**arguments(each), **changes})
