"""The published twins against the formulas written out, in float64: values, gradients, both modes of batch norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.reference.published.written_out import FORMULAS, convolution, nonlocal_
from triton_attn import reference
from triton_attn.reference import published
from triton_attn.reference.registry import PUBLISHED

NAMES = sorted(PUBLISHED)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(block: nn.Module) -> nn.Module:
    """With parameters and statistics of some size, so that no gate stays near one half."""
    with torch.no_grad():
        for i, (key, value) in enumerate(block.state_dict().items()):
            if key.endswith("running_var"):
                value.copy_(draw(*value.shape, seed=i).abs() + 0.5)
            elif value.is_floating_point():
                value.copy_(draw(*value.shape, seed=i) * 0.7)
    return block


def make(name: str, channels: int, **options: object) -> nn.Module:
    torch.manual_seed(0)
    if name == "published.danet":
        options.setdefault("dropout", 0.0)
    return filled(PUBLISHED[name](channels, **options, dtype=torch.float64))


def test_every_block_has_a_formula():
    assert FORMULAS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 33, 5, 7), (3, 32, 4, 3)], ids=str)
def test_formula(name, shape, training):
    block, x = make(name, shape[1]).train(training), draw(*shape)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    expected = FORMULAS[name](x, before, training)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    moved = [key for key, value in block.state_dict().items() if not torch.equal(value, before[key])]
    assert bool(moved) == (training and any("running" in key for key in before)), "statistics move in training alone"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_inputs_and_parameters(name, training):
    """Of the twin and of the formula, which autograd differentiates by itself."""
    channels = 32 if name == "published.danet" else 16
    block = make(name, channels).train(training)
    x = draw(2, channels, 4, 5).requires_grad_()
    parameters = dict(block.named_parameters())
    state = {key: value.clone() for key, value in block.state_dict().items()} | parameters
    expected = FORMULAS[name](x, state, training)
    grad = draw(*expected.shape, seed=7)
    wanted = [x, *parameters.values()]
    exact = torch.autograd.grad(expected, wanted, grad)
    ours = torch.autograd.grad(block(x), wanted, grad)
    for key, a, b in zip(["x", *parameters], ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ["published.gate", "published.grid_gate"])
@pytest.mark.parametrize("gating_shape", [(2, 10, 3, 4), (2, 10, 12, 8), (2, 10, 6, 8), (2, 10, 1, 1)])
def test_gates_take_a_signal_of_other_channels_and_size(name, gating_shape):
    block = make(name, 6, gating_channels=10)
    x, gating = draw(2, 6, 6, 8), draw(*gating_shape, seed=3)
    for training in (True, False):
        state = {key: value.clone() for key, value in block.state_dict().items()}
        expected = FORMULAS[name](x, state, training, gating)
        torch.testing.assert_close(block.train(training)(x, gating), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"gating must be given, \(N, 10, H, W\)"):
        block(x)
    with pytest.raises(ValueError, match=r"gating must have x's batch size 2"):
        block(x, gating[:1])


@pytest.mark.parametrize("stride", [1, 3])
def test_a_grid_of_another_stride(stride):
    block, x, gating = make("published.grid_gate", 6, stride=stride), draw(2, 6, 7, 9), draw(2, 6, 2, 3, seed=2)
    expected = FORMULAS["published.grid_gate"](x, block.state_dict(), False, gating)
    torch.testing.assert_close(block.eval()(x, gating), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"x must be at least 3 high and wide, the stride, got shape \(1, 6, 2, 4\)"):
        make("published.grid_gate", 6, stride=3)(draw(1, 6, 2, 4))


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product"])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_the_modes_of_nonlocal(mode, scale):
    block, x = make("published.nonlocal", 6, mode=mode, scale=scale), 0.5 * draw(2, 6, 5, 7)
    assert ("theta.weight" in block.state_dict()) == (mode != "gaussian")
    expected = nonlocal_(x, block.state_dict(), False, mode, 1.0 if scale is None else scale)
    torch.testing.assert_close(block.eval()(x), expected, rtol=1e-10, atol=1e-10)


def test_nonlocal_without_subsampling_norm_and_projection_of_another_width():
    block, x = make("published.nonlocal", 6, hidden_channels=4, subsample=False, norm=False), draw(2, 6, 3, 5)
    state = block.state_dict()
    assert state["theta.weight"].shape == (4, 6, 1, 1)
    assert not [key for key in state if key.startswith("norm")]
    twin = reference.NonLocalBlock(6, dtype=torch.float64)  # the same, were its values projected back
    twin.query_conv, twin.key_conv = block.theta, block.phi
    value = torch.einsum("om,mc->oc", state["out.weight"][:, :, 0, 0], state["g.weight"][:, :, 0, 0])
    bias = torch.einsum("om,m->o", state["out.weight"][:, :, 0, 0], state["g.bias"]) + state["out.bias"]
    with torch.no_grad():
        twin.value_conv.weight.copy_(value[:, :, None, None])
        twin.value_conv.bias.copy_(bias)
    torch.testing.assert_close(block(x), twin(x), rtol=1e-10, atol=1e-10)


def test_nonlocal_on_a_map_too_small_to_pool():
    block = make("published.nonlocal", 4).eval()
    for shape in ((2, 4, 1, 1), (2, 4, 1, 6), (2, 4, 7, 1)):
        assert block(draw(*shape)).isfinite().all()


def test_cbam_of_another_window_and_without_biases():
    block, x = make("published.cbam", 8, hidden_channels=3, bias=False, kernel_size=3), draw(2, 8, 4, 5)
    assert list(block.state_dict())[:3] == ["fc1.weight", "fc2.weight", "conv.weight"]
    expected = FORMULAS["published.cbam"](x, block.state_dict(), False)
    torch.testing.assert_close(block.eval()(x), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        published.CBAM(16, kernel_size=4)
    assert published.CBAM(16).norm.momentum == 0.01


def test_widths_by_default():
    assert published.CoordinateAttention(64).conv1.out_channels == 8
    assert published.CoordinateAttention(512).conv1.out_channels == 16
    assert published.CoordinateAttention(64, hidden_channels=3).conv1.out_channels == 3
    assert published.ECABlock(512).conv.kernel_size == (5,)
    assert published.ECABlock(512, 3).conv.kernel_size == (3,)
    assert published.NonLocal(64).theta.out_channels == 32
    assert published.PositionAttention(64).query_conv.out_channels == 8
    assert published.AttentionGate(64).psi.in_channels == 32
    assert published.GlobalContext(64).fc1.out_features == 8
    assert published.DualAttention(64, 21).conv_out.weight.shape == (21, 16, 1, 1)
    assert published.DualAttention(64, 21)(torch.randn(2, 64, 4, 4)).shape == (2, 21, 4, 4)


def test_danet_drops_in_training_alone():
    block, x = make("published.danet", 32, dropout=0.5), draw(2, 32, 4, 4)
    torch.manual_seed(0)
    first, second = block(x), block(x)
    assert not torch.allclose(first, second)
    block.eval()
    assert torch.equal(block(x), block(x))
    with pytest.raises(ValueError, match=r"dropout must be from 0 to 1, got 1\.5"):
        published.DualAttention(32, dropout=1.5)
    with pytest.raises(ValueError, match=r"out_channels must be in_channels=32 for identity=True, got 21"):
        published.DualAttention(32, 21, identity=True)


def test_simam_in_16_bits_sums_what_16_bits_cannot_hold():
    x = 100 * torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (x - x.mean()).square().sum() > torch.finfo(torch.float16).max
    expected = published.SimAM()(x)
    torch.testing.assert_close(published.SimAM()(x.half()).float(), expected, rtol=1e-2, atol=0.1)


def test_a_convolution_by_its_sum_is_one():
    x, weight = draw(2, 3, 5, 4), draw(6, 3, 3, 3, seed=2)
    torch.testing.assert_close(convolution(x, weight), nn.functional.conv2d(x, weight, padding=1))
