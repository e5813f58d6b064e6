"""The plain networks: torchvision's names and numbers, and the tutorial's model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.reference.images import images, with_statistics
from triton_attn.reference import ResNetWithAttention, SEBlock, build_resnet
from triton_attn.reference.registry import BLOCKS
from triton_attn.reference.resnet import ARCHITECTURES

# Against torchvision.


# The others are more of the same two blocks, as many as the table says.
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_parameters_have_torchvision_names_and_shapes(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        own, theirs = build_resnet(name), getattr(models, name)()
    assert list(own.state_dict()) == list(theirs.state_dict())
    for (key, value), other in zip(own.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (value.shape, value.dtype) == (other.shape, other.dtype), key
    assert [key for key, _ in own.named_parameters()] == [key for key, _ in theirs.named_parameters()]


def test_depths():
    assert {name: (block.__name__, depths) for name, (block, depths) in ARCHITECTURES.items()} == {
        "resnet18": ("BasicBlock", (2, 2, 2, 2)),
        "resnet34": ("BasicBlock", (3, 4, 6, 3)),
        "resnet50": ("Bottleneck", (3, 4, 6, 3)),
        "resnet101": ("Bottleneck", (3, 4, 23, 3)),
        "resnet152": ("Bottleneck", (3, 8, 36, 3)),
    }


@pytest.mark.parametrize(("name", "train"), [("resnet18", True), ("resnet50", False)])
def test_numbers_equal_torchvision(name, train):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = with_statistics(getattr(models, name)(num_classes=11)).train(train)
    own = build_resnet(name, num_classes=11).train(train)
    own.load_state_dict(theirs.state_dict())
    x = images(2, 3, 33, 40)
    with torch.set_grad_enabled(train):
        logits, expected = own(x), theirs(x)
    assert torch.equal(logits, expected)
    for (key, one), other in zip(own.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other), key  # the running statistics, after a pass in training mode
    if train:
        for each in (logits, expected):
            F.cross_entropy(each, torch.tensor([1, 4])).backward()
        for (key, one), other in zip(own.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6, msg=key)


def test_initial_weights_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    model = build_resnet("resnet18", {"stem": "se", "layer4": "cbam", "paper": "se"})
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Conv2d) and "attention" not in key.split("."):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), key
    bound = (2 * 49) ** -0.5  # PyTorch's default for a convolution: uniform within 1 / sqrt(fan in)
    assert 0.8 * bound < model.layer4.attention.spatial_attention.weight.abs().max() <= bound


# The tutorial's model.


@pytest.fixture(scope="module")
def tutorial() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(ResNetWithAttention(SEBlock, pretrained=False)).eval()


# What a block's keys are, test_blocks says of each.
def test_the_tutorial_model_has_the_tutorial_keys():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        state = ResNetWithAttention(BLOCKS["cbam"], pretrained=False).state_dict()
        base = [f"base_model.{key}" for key in models.resnet50().state_dict()]
        blocks = {i: BLOCKS["cbam"](channels).state_dict() for i, channels in ((1, 64), (2, 2048))}
    assert list(state) == base + [f"attention_layer{i}.{key}" for i in (1, 2) for key in blocks[i]]
    assert all(state[f"attention_layer{i}.{key}"].shape == blocks[i][key].shape for i in (1, 2) for key in blocks[i])


def test_the_tutorial_model_loads_strictly_and_computes_the_same(tutorial):
    other = ResNetWithAttention(SEBlock, pretrained=False).eval()
    state = tutorial.state_dict()
    other.load_state_dict(state, strict=True)
    x = images(1, 3, 33, 33)
    with torch.no_grad():
        expected = tutorial(x)
        assert expected.shape == (1, 1000)
        assert torch.equal(other(x), expected)
        # The network with sites, given the same numbers under its own names, gives the same logits.
        renamed = {
            key.replace("base_model.", "")
            .replace("attention_layer1.", "attention.stem.")
            .replace("attention_layer2.", "layer4.attention."): value
            for key, value in state.items()
        }
        assert torch.equal(build_resnet("resnet50", "se", weights=renamed).eval()(x), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({key: value for key, value in state.items() if key != "attention_layer1.fc1.bias"})


def test_the_tutorial_model_hands_on_its_attention(tutorial):
    x = images(1, 3, 33, 33)
    with torch.no_grad():
        found = tutorial.forward_features(x)
        assert torch.equal(tutorial(x), tutorial.base_model.forward_head(found))
        kept = tutorial.attention_layer2.fc2.bias.clone()
        tutorial.attention_layer2.fc2.bias += 1
        assert not torch.allclose(tutorial.forward_features(x), found)
        tutorial.attention_layer2.fc2.bias.copy_(kept)


def test_the_tutorial_model_takes_any_callable():
    with torch.device("meta"):
        model = ResNetWithAttention(lambda channels: nn.Conv2d(channels, channels, 1), pretrained=False)
    assert model.attention_layer1.weight.shape == (64, 64, 1, 1)
    assert model.attention_layer2.weight.shape == (2048, 2048, 1, 1)
