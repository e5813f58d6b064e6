"""The functions check what they are given, and give what the blocks give."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from triton_attn import functional


def arguments() -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(2, 8, 3, 5),
        "weight1": torch.randn(2, 8),
        "bias1": torch.randn(2),
        "weight2": torch.randn(8, 2),
        "bias2": torch.randn(8),
    }


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_squeeze_excite_is_the_block(with_shortcut: bool) -> None:
    block = triton_attn.SEBlock(8, 4)
    x = torch.randn(2, 8, 3, 5)
    shortcut = torch.randn(2, 8, 3, 5) if with_shortcut else None
    assert torch.equal(functional.squeeze_excite(x, *block.weights(), shortcut), block(x, shortcut))


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_coordinate_attention_and_eca_are_the_blocks(with_shortcut: bool) -> None:
    x = torch.randn(2, 8, 3, 5)
    shortcut = torch.randn(2, 8, 3, 5) if with_shortcut else None
    block = triton_attn.CoordinateAttention(8, 4)
    assert torch.equal(functional.coordinate_attention(x, *block.weights(), shortcut), block(x, shortcut))
    block = triton_attn.ECABlock(8, 5)
    assert torch.equal(functional.eca(x, block.conv.weight, shortcut), block(x, shortcut))
    assert torch.equal(functional.eca(x, block.conv.weight.flatten(), shortcut), block(x, shortcut))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.randn(2, 8, 3)}, ValueError, r"x must be 4-D, \(N, 8, H, W\), got shape \(2, 8, 3\)"),
        ({"x": torch.randn(2, 7, 3, 5)}, ValueError, r"x must have 8 channels"),
        ({"x": torch.ones(2, 8, 3, 5, dtype=torch.int32)}, TypeError, r"x must be float16.*got torch.int32"),
        ({"x": torch.randn(2, 8, 3, 5).half()}, TypeError, r"x is torch.float16, but .*torch.float32"),
        ({"x": torch.randn(2, 8, 3, 5, device="meta")}, ValueError, r"x is on meta"),
        ({"x": [1.0]}, TypeError, r"x must be a torch.Tensor .*got list"),
        ({"weight1": torch.randn(8)}, ValueError, r"weight1 must be \(m, C\), got shape \(8,\)"),
        ({"weight1": torch.randn(0, 8)}, ValueError, r"weight1 must be \(m, C\) with m and C of at least 1"),
        ({"bias1": torch.randn(3)}, ValueError, r"bias1 must be \(2,\)"),
        ({"weight2": torch.randn(2, 8)}, ValueError, r"weight2 must be \(8, 2\)"),
        ({"bias2": torch.randn(8).double()}, TypeError, r"bias2 is torch.float64"),
        ({"bias2": torch.randn(8, device="meta")}, ValueError, r"bias2 is on meta"),
        ({"shortcut": torch.randn(2, 8, 3, 4)}, ValueError, r"shortcut must have x's shape \(2, 8, 3, 5\)"),
        ({"shortcut": torch.ones(2, 8, 3, 5, dtype=torch.long)}, TypeError, r"shortcut must be float16"),
        ({"shortcut": torch.randn(2, 8, 3, 5, device="meta")}, ValueError, r"shortcut is on meta"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "triton"])
def test_errors_name_the_argument(changes: dict, error: type[Exception], message: str, name: str) -> None:
    """The same errors whatever backend is asked for: the checks come before the choice."""
    with triton_attn.use_backend(name), pytest.raises(error, match=message):
        functional.squeeze_excite(**{**arguments(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "median"}, r"pool must be one of 'mean', 'max', 'both', 'half', got 'median'"),
        ({"hidden_activation": "elu"}, r"hidden_activation must be one of 'relu', .*'none', got 'elu'"),
        ({"activation": None}, r"activation must be one of 'sigmoid', 'hard_sigmoid', .*got None"),
    ],
)
def test_choices_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.channel_gate(**{**arguments(), **changes})
    if "hidden_activation" not in changes:
        with pytest.raises(ValueError, match=message):
            functional.eca(torch.randn(2, 8, 3, 5), torch.randn(3), **changes)


@pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 2, 3), (0,), ()], ids=str)
def test_the_weight_of_eca_holds_an_odd_number_of_taps(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="weight must hold an odd number of taps"):
        functional.eca(torch.randn(2, 8, 3, 5), torch.randn(shape))


def test_the_map_of_eca_is_checked() -> None:
    with pytest.raises(ValueError, match=r"x must be 4-D"):
        functional.eca(torch.randn(8, 3, 5), torch.randn(3))
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor"):
        functional.eca([1.0], torch.randn(3))  # type: ignore[arg-type]


def cbam_arguments() -> dict[str, torch.Tensor]:
    return {**arguments(), "conv_weight": torch.randn(1, 2, 7, 7), "conv_bias": torch.randn(1)}


def dual_arguments() -> dict[str, torch.Tensor]:
    second = {
        "weight3": torch.randn(2, 8),
        "bias3": torch.randn(2),
        "weight4": torch.randn(8, 2),
        "bias4": torch.randn(8),
    }
    return {**cbam_arguments(), **second}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.randn(2, 7, 3, 5)}, ValueError, r"x must have 8 channels"),
        ({"bias1": torch.randn(3)}, ValueError, r"bias1 must be \(2,\)"),
        (
            {"conv_weight": torch.randn(1, 2, 3, 3)},
            ValueError,
            r"conv_weight must be \(1, 2, 7, 7\), got",
        ),
        ({"conv_weight": torch.randn(1, 2, 7, 7).half()}, TypeError, r"conv_weight is torch.float16, but weight1 is"),
        ({"conv_bias": torch.randn(2)}, ValueError, r"conv_bias must be \(1,\), got \(2,\)"),
        ({"conv_bias": torch.randn(1, device="meta")}, ValueError, r"conv_bias is on meta, but weight1 is on cpu"),
        ({"shortcut": torch.randn(2, 8, 3, 4)}, ValueError, r"shortcut must have x's shape \(2, 8, 3, 5\)"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "triton"])
def test_cbam_errors_name_the_argument(changes: dict, error: type[Exception], message: str, name: str) -> None:
    for function, given in ((functional.cbam, cbam_arguments()), (functional.dual, dual_arguments())):
        with triton_attn.use_backend(name), pytest.raises(error, match=message):
            function(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight3": torch.randn(3, 8)},
            r"weight3 must be as weight1 is, \(2, 8\) in .* on cpu, got \(3, 8\)",
        ),
        ({"bias4": torch.randn(8).half()}, r"bias4 must be as bias2 is, .*got \(8,\) in torch.float16"),
        ({"weight4": torch.randn(8, 2, device="meta")}, r"weight4 must be as weight2 is, .*on meta"),
    ],
)
def test_the_second_bottleneck_is_as_the_first(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.dual(**{**dual_arguments(), **changes})


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_cbam_and_dual_are_the_blocks(with_shortcut: bool) -> None:
    x = torch.randn(2, 8, 3, 5)
    shortcut = torch.randn(2, 8, 3, 5) if with_shortcut else None
    for block, function in (
        (triton_attn.CBAM(8, 4), functional.cbam),
        (triton_attn.DualAttentionBlock(8, 4), functional.dual),
    ):
        assert torch.equal(function(x, *block.parameters(), shortcut), block(x, shortcut))


def test_attention_of_tensors_without_data() -> None:
    q = torch.empty(2, 6, 4, device="meta")
    assert functional.nonlocal_attention(q, q, q).shape == q.shape
