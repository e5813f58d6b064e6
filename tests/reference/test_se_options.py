"""SE's options: against the formula written out, torchvision's SqueezeExcitation and timm's SEModule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from triton_attn import published, reference


def erf(z: Tensor) -> Tensor:
    return torch.special.erf(z)


HIDDEN = {
    "relu": lambda z: (z + z.abs()) / 2,
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "hardswish": lambda z: z * torch.clip(z + 3, 0, 6) / 6,
    "gelu": lambda z: z * (1 + erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    "leaky_relu": lambda z: torch.where(z > 0, z, z / 100),
    "none": lambda z: z,
}
GATES = {
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "hard_sigmoid": lambda z: torch.clip(z + 3, 0, 6) / 6,
    "none": lambda z: z,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("identity", [False, True])
def test_formula(hidden, gate, bias, identity):
    torch.manual_seed(0)
    block = reference.SEBlock(
        12, hidden_channels=5, bias=bias, hidden_activation=hidden, gate=gate, identity=identity, dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=2.0)
    x = torch.randn(3, 12, 4, 5, dtype=torch.float64)
    state = block.state_dict()
    assert state["fc1.weight"].shape == (5, 12)
    assert ("fc1.bias" in state) == ("fc2.bias" in state) == bias
    bias1, bias2 = (state.get(f"fc{i}.bias", torch.zeros((), dtype=torch.float64)) for i in (1, 2))
    z = HIDDEN[hidden](torch.einsum("mc,nchw->nm", state["fc1.weight"], x) / 20 + bias1)
    z = torch.einsum("cm,nm->nc", state["fc2.weight"], z) + bias2
    expected = GATES[gate](z)
    if identity:
        expected = 1 + z if gate == "none" else 2 * expected
    torch.testing.assert_close(block(x), x * expected[:, :, None, None], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.attention_maps(x)["channel"][:, :, 0, 0], expected, rtol=1e-12, atol=1e-12)
    x = torch.randn(2, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), fast_mode=True)


@pytest.mark.parametrize("one_layer", [False, True])
@pytest.mark.parametrize("pool", ["mean", "max", "both", "half"])
def test_pools_and_a_single_layer(pool, one_layer):
    torch.manual_seed(0)
    block = reference.SEBlock(12, 3, pool=pool, one_layer=one_layer, gate="hard_sigmoid", dtype=torch.float64)
    x, state = torch.randn(3, 12, 4, 5, dtype=torch.float64), block.state_dict()
    assert list(state) == [
        f"{layer}.{of}" for layer in (["fc"] if one_layer else ["fc1", "fc2"]) for of in ("weight", "bias")
    ]
    mean, top = x.sum((2, 3)) / 20, x.flatten(2).max(2).values
    vectors = {"mean": [mean], "max": [top], "both": [mean, top], "half": [(mean + top) / 2]}[pool]
    z = 0
    for vector in vectors:
        for i, layer in enumerate(["fc"] if one_layer else ["fc1", "fc2"]):
            vector = vector.relu() if i else vector
            vector = torch.einsum("om,nm->no", state[f"{layer}.weight"], vector) + state[f"{layer}.bias"]
        z = z + vector
    expected = GATES["hard_sigmoid"](z)[:, :, None, None]
    torch.testing.assert_close(block(x), x * expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.attention_maps(x)["channel"], expected, rtol=1e-12, atol=1e-12)
    same = reference.SEBlock(12, 3, pool=pool, one_layer=one_layer, identity=True)
    x = x.float()
    assert torch.equal(same(x), x)
    assert (f"pool={pool!r}" in repr(block)) == (pool != "mean")


def test_ese_and_maxima_as_timm_has_them():
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    x = torch.randn(2, 16, 5, 4)
    for ours, theirs in (
        (published.SEBlock(16, one_layer=True, gate="hard_sigmoid"), layers.EffectiveSEModule(16)),
        (
            published.SEBlock(16, one_layer=True, gate="hard_sigmoid", pool="half"),
            layers.EffectiveSEModule(16, add_maxpool=True),
        ),
        (
            published.SEBlock(16, hidden_channels=6, pool="half"),
            layers.SEModule(16, rd_channels=6, add_maxpool=True),
        ),
    ):
        assert published.load(ours, theirs.state_dict()) == "timm"
        torch.testing.assert_close(ours(x), theirs(x))
        theirs.load_state_dict(published.export(ours, "timm"), strict=True)
        with pytest.raises(ValueError, match=r"it has two layers and means, and the block [12] and pool="):
            published.export(ours, "torchvision")
    with pytest.raises(ValueError, match="half of them, and the block pool='both'"):
        published.export(published.SEBlock(16, pool="both"), "timm")


@pytest.mark.parametrize(
    ("hidden", "gate", "activation", "scale"),
    [
        ("relu", "sigmoid", nn.ReLU, nn.Sigmoid),  # RegNet
        ("silu", "sigmoid", nn.SiLU, nn.Sigmoid),  # EfficientNet
        ("relu", "hard_sigmoid", nn.ReLU, nn.Hardsigmoid),  # MobileNetV3
    ],
)
def test_as_torchvision_and_timm_have_it(hidden, gate, activation, scale):
    misc, layers = pytest.importorskip("torchvision.ops.misc"), pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    x = torch.randn(2, 16, 5, 4)
    ours = reference.SEBlock(16, hidden_channels=6, hidden_activation=hidden, gate=gate)
    state = {key: v[..., None, None] if v.dim() == 2 else v for key, v in ours.state_dict().items()}
    for theirs in (
        misc.SqueezeExcitation(16, 6, activation, scale),
        layers.SEModule(16, rd_channels=6, act_layer=activation, gate_layer=scale),
    ):
        theirs.load_state_dict(state)
        torch.testing.assert_close(ours(x), theirs(x))


def test_wrong_options_are_refused():
    for wrong in ("swish", "ReLU", "", None):
        with pytest.raises(ValueError, match=rf"hidden_activation must be one of 'relu', 'silu', .*, got {wrong!r}"):
            reference.SEBlock(16, hidden_activation=wrong)
    for wrong in ("double_sigmoid", "softmax", None):
        with pytest.raises(ValueError, match=rf"gate must be one of 'sigmoid', 'hard_sigmoid', 'none', got {wrong!r}"):
            reference.SEBlock(16, gate=wrong)
    with pytest.raises(ValueError, match=r"pool must be one of 'mean', 'max', 'both', 'half', got 'avg'"):
        reference.SEBlock(16, pool="avg")
    for wrong in ({"hidden_channels": 4}, {"norm": True}):
        with pytest.raises(ValueError, match="must be None and False for one_layer=True"):
            reference.SEBlock(16, one_layer=True, **wrong)
    for wrong in (0, -1, 2.0, True, "8"):
        with pytest.raises(ValueError, match=rf"hidden_channels must be a positive integer, got {wrong!r}"):
            reference.SEBlock(16, hidden_channels=wrong)
    assert reference.SEBlock(4, hidden_channels=1).fc1.out_features == 1, "whatever the reduction would leave"
    assert "gate='hard_sigmoid'" in repr(reference.SEBlock(16, gate="hard_sigmoid"))


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_inside_is_timms(training):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = published.SEBlock(16, hidden_channels=8, norm=True, dtype=torch.float64)
    theirs = timm.layers.SEModule(16, rd_channels=8, norm_layer=nn.BatchNorm2d).double()
    nn.init.uniform_(theirs.bn.running_var)
    nn.init.uniform_(theirs.bn.running_mean)
    assert published.load(ours, theirs.state_dict()) == "timm"
    assert published.export(ours, "timm").keys() == theirs.state_dict().keys()
    x = torch.randn(3, 16, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    torch.testing.assert_close(ours.norm.running_mean, theirs.bn.running_mean)
    with pytest.raises(ValueError, match="no batch norm inside"):
        published.export(ours, "torchvision")


def test_a_batch_norm_is_folded_in_evaluation_alone():
    torch.manual_seed(0)
    block = reference.SEBlock(16, hidden_channels=8, norm=True, bias=False)
    assert block.weights() is None
    weight1, bias1, weight2, bias2 = block.eval().weights()
    vector = torch.randn(3, 16)
    torch.testing.assert_close(nn.functional.linear(vector, weight1, bias1), block.norm(block.fc1(vector)))
    assert weight2 is block.fc2.weight
    assert bias2 is None
    block.norm.register_forward_hook(lambda *_: None)
    assert block.weights() is None
