"""The plain networks: torchvision's names and numbers, attention where it was asked for, errors in words."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_attn import reference
from triton_attn.reference import ResNetWithAttention, build_resnet
from triton_attn.reference.published import NonLocal
from triton_attn.reference.registry import BLOCKS, SITES
from triton_attn.reference.resnet import ARCHITECTURES, BasicBlock, Bottleneck

DEPTHS = sorted(ARCHITECTURES)
STAGES = ("layer1", "layer2", "layer3", "layer4")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 64, 64)), generator=torch.Generator().manual_seed(seed))


def with_statistics(model: nn.Module) -> nn.Module:
    """Give the batch norms weights, biases and statistics of their own, so that none is the identity."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
    return model


# Against torchvision.


@pytest.mark.parametrize("name", DEPTHS)
def test_parameters_have_torchvision_names_and_shapes(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        own, theirs = build_resnet(name), getattr(models, name)()
    assert list(own.state_dict()) == list(theirs.state_dict())
    for (key, value), other in zip(own.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (value.shape, value.dtype) == (other.shape, other.dtype), key
    assert [key for key, _ in own.named_parameters()] == [key for key, _ in theirs.named_parameters()]


# The deeper ones have the same two residual blocks, more often.
@pytest.mark.parametrize(("name", "train"), [("resnet18", True), ("resnet34", False), ("resnet50", True)])
def test_logits_equal_torchvision(name, train):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = with_statistics(getattr(models, name)(num_classes=11)).train(train)
    own = build_resnet(name, num_classes=11).train(train)
    own.load_state_dict(theirs.state_dict())
    x = images(2, 3, 64, 64) if train else images(2, 3, 33, 40)
    with torch.no_grad():
        assert torch.equal(own(x), theirs(x))
    for (key, one), other in zip(own.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other), key  # the running statistics, after a pass in training mode


def test_gradients_equal_torchvision():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = with_statistics(models.resnet18(num_classes=5)).train()
    own = build_resnet("resnet18", num_classes=5).train()
    own.load_state_dict(theirs.state_dict())
    for model in (own, theirs):
        F.cross_entropy(model(images()), torch.tensor([1, 4])).backward()
    for (key, one), other in zip(own.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6, msg=key)


def test_initial_weights_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    model = build_resnet("resnet18", "se", where=SITES)
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), key


def test_attention_keeps_its_own_initial_weights():
    torch.manual_seed(0)
    block = build_resnet("resnet18", "cbam", where="layer4").attention["layer4"]
    bound = (2 * 49) ** -0.5  # PyTorch's default for a convolution: uniform within 1 / sqrt(fan in)
    assert 0.8 * bound < block.spatial_attention.weight.abs().max() <= bound


# Sites.


def channels_of(name: str) -> dict[str, list[int]]:
    expansion = {"resnet18": 1, "resnet50": 4}[name]
    counts = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[name]
    widths = [64 * expansion, 128 * expansion, 256 * expansion, 512 * expansion]
    within = [width for width, count in zip(widths, counts, strict=True) for _ in range(count)]
    paper = {"resnet18": [128, 256], "resnet50": [512] * 2 + [1024] * 3}[name]
    return {"stem": [64], "paper": paper, "block": within} | {
        stage: [width] for stage, width in zip(STAGES, widths, strict=True)
    }


# Behind which blocks the non-local networks attend, by the paper and its code (50 and 101), and likewise (the rest).
PAPER = {
    "resnet18": ["layer2.1", "layer3.1"],
    "resnet34": ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"],
    "resnet50": ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"],
    "resnet101": ["layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"],
    "resnet152": ["layer2.3", "layer2.7", "layer3.11", "layer3.23", "layer3.35"],
}


class Scale(nn.Module):
    """Attention that takes no shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, channels)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("site", SITES)
def test_site_keys_and_channels(name, site):
    seen = []

    def factory(channels: int) -> nn.Module:
        seen.append(channels)
        return Scale(channels)

    with torch.device("meta"):
        plain = set(build_resnet(name).state_dict())
        state = build_resnet(name, factory, where=site).state_dict()
    assert seen == channels_of(name)[site]
    added = {key: value.shape[0] for key, value in state.items() if key not in plain}
    assert plain <= set(state)
    if site == "paper":
        assert added == {f"{place}.after.attention.gain": c for place, c in zip(PAPER[name], seen, strict=True)}
    elif site != "block":
        assert added == {f"attention.{site}.gain": seen[0]}
    else:
        depths = ARCHITECTURES[name][1]
        places = [f"layer{k + 1}.{i}" for k, depth in enumerate(depths) for i in range(depth)]
        assert added == {f"{place}.attention.gain": c for place, c in zip(places, seen, strict=True)}


@pytest.mark.parametrize("name", PAPER)
def test_where_the_paper_attends(name):
    with torch.device("meta"):
        model = build_resnet(name, {"paper": "published.nonlocal", "block": "se"})
    assert [
        key.removesuffix(".after.attention") for key, each in model.named_modules() if isinstance(each, NonLocal)
    ] == (PAPER[name])
    assert model.layer3[1].attention is not None


def test_the_default_sites_are_the_tutorials():
    with torch.device("meta"):
        model = build_resnet("resnet50", "se")
    assert set(model.attention) == {"stem", "layer4"}
    assert model.attention["stem"].fc1.in_features == 64
    assert model.attention["layer4"].fc1.in_features == 2048
    assert all(block.attention is None for block in model.layer1)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("shortcut", [True, False], ids=["takes a shortcut", "takes none"])
def test_attention_acts_where_it_stands(site, shortcut):
    torch.manual_seed(0)
    factory = functools.partial(reference.SEBlock, reduction=8) if shortcut else Scale
    model = with_statistics(build_resnet("resnet18", factory, where=site, num_classes=6)).eval().double()
    x = images(1, 3, 40, 48).double()

    def block(layer: BasicBlock, x: Tensor) -> Tensor:
        branch = layer.bn2(layer.conv2(F.relu(layer.bn1(layer.conv1(x)))))
        if site == "block":
            branch = layer.attention(branch)  # on the branch, before the addition
        y = F.relu(branch + (x if layer.downsample is None else layer.downsample(x)))
        return y if layer.after is None else layer.after["attention"](y)

    def attend(at: str, x: Tensor) -> Tensor:
        return model.attention[at](x) if at == site else x

    y = F.max_pool2d(attend("stem", F.relu(model.bn1(model.conv1(x)))), 3, stride=2, padding=1)
    for stage in STAGES:
        for layer in getattr(model, stage):
            y = block(layer, y)
        y = attend(stage, y)
    expected = model.fc(y.mean((2, 3)))
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    behind = [layer for stage in STAGES for layer in getattr(model, stage) if layer.after is not None]
    assert behind == ([model.layer2[1], model.layer3[1]] if site == "paper" else [])
    plain = build_resnet("resnet18", num_classes=6).eval().double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "attention" not in k.split(".")})
    assert (plain(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("stride", [1, 2])
def test_block_site_in_a_bottleneck(name, stride):
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(32, 64, 1, stride=stride, bias=False), nn.BatchNorm2d(64))
    block = with_statistics(Bottleneck(32, 16, stride, downsample, BLOCKS[name])).eval().double()
    x = images(2, 32, 9, 8).double()
    branch = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
    expected = F.relu(block.attention(branch) + downsample(x))
    assert block.conv2.stride == (stride, stride)
    assert block.takes_shortcut
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-11)


def test_blocks_do_not_overwrite_their_input():
    torch.manual_seed(0)
    for attention in (None, reference.SEBlock, Scale, nn.Identity):
        block = BasicBlock(16, 16, attention=None if attention is None else lambda c, a=attention: a(c))
        x = images(2, 16, 5, 5)
        kept = x.clone()
        block(x).sum().backward()
        assert torch.equal(x, kept)


# The forms of the arguments.


def kinds(model: nn.Module) -> dict[str, str]:
    found = {site: type(module).__name__ for site, module in model.attention.items()}
    within = {type(block.attention).__name__ for stage in STAGES for block in getattr(model, stage)} - {"NoneType"}
    return found | ({"block": "/".join(within)} if within else {})


@pytest.mark.parametrize(
    ("attention", "where", "expected"),
    [
        (None, ("stem",), {}),
        ("eca", "layer3", {"layer3": "ECABlock"}),
        ("eca", ["layer3", "stem"], {"layer3": "ECABlock", "stem": "ECABlock"}),
        ("se", {"block"}, {"block": "SEBlock"}),
        ("se", iter(["layer1", "block"]), {"layer1": "SEBlock", "block": "SEBlock"}),
        (reference.CBAM, "layer4", {"layer4": "CBAM"}),
        (lambda c: nn.Conv2d(c, c, 1), "layer2", {"layer2": "Conv2d"}),
        ({"layer3": "nonlocal", "block": "se"}, ("stem",), {"layer3": "NonLocalBlock", "block": "SEBlock"}),
        ({"stem": Scale, "layer4": "gate"}, "layer1", {"stem": "Scale", "layer4": "AttentionGate"}),
        ({}, "layer1", {}),
    ],
    ids=["none", "string", "list", "set", "iterator", "class", "callable", "mapping", "mixed", "empty"],
)
def test_forms_of_attention_and_where(attention, where, expected):
    with torch.device("meta"):
        assert kinds(build_resnet("resnet18", attention, where=where)) == expected


def test_attention_kwargs_reach_the_named_blocks():
    attention = {"stem": "se", "block": "cbam", "layer1": Scale}
    with torch.device("meta"):
        model = build_resnet("resnet18", attention, attention_kwargs={"reduction": 4})
    assert model.attention["stem"].fc1.out_features == 16
    assert model.layer4[1].attention.channel_attention.fc1.out_features == 128
    wide = build_resnet("resnet18", "eca", where="stem", attention_kwargs={"kernel_size": 7})
    assert wide.attention["stem"].conv.weight.shape == (1, 1, 7)


def test_blocks_chooses_the_classes_that_names_stand_for():
    with torch.device("meta"):
        model = build_resnet("resnet18", "mine", where="layer1", blocks={"mine": Scale})
    assert kinds(model) == {"layer1": "Scale"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: build_resnet("resnet51"), ValueError, r"unknown model 'resnet51'; did you mean 'resnet50'\?"),
        (lambda: build_resnet(50), ValueError, r"unknown model 50"),
        (
            lambda: build_resnet("resnet18", "sse"),
            ValueError,
            r"unknown attention 'sse'; did you mean 'se'\? \(",
        ),
        (lambda: build_resnet("resnet18", "non_local"), ValueError, r"did you mean 'nonlocal'\?"),
        (lambda: build_resnet("resnet18", "zzzz"), ValueError, r"unknown attention 'zzzz' \(known: cbam, coordinate, "),
        (lambda: build_resnet("resnet18", {"stem": "cbm"}), ValueError, r"did you mean 'cbam'\?"),
        (
            lambda: build_resnet("resnet18", "se", where="layer5"),
            ValueError,
            r"unknown site 'layer5'; did you mean",
        ),
        (lambda: build_resnet("resnet18", "se", where=("stem", "blok")), ValueError, r"did you mean 'block'\?"),
        (lambda: build_resnet("resnet18", {"steam": "se"}), ValueError, r"unknown site 'steam'; did you mean 'stem'\?"),
        (
            lambda: build_resnet("resnet18", "se", where=()),
            ValueError,
            r"where is empty, expected some of stem",
        ),
        (lambda: build_resnet("resnet18", 5), TypeError, r"attention must be a name, .*; got int"),
        (lambda: build_resnet("resnet18", {"stem": None}), TypeError, r"attention must be a name, .*; got NoneType"),
        (lambda: build_resnet("resnet18", ["se"]), TypeError, r"attention must be a name, .*; got list"),
        (
            lambda: build_resnet("resnet18", reference.SEBlock(64)),
            TypeError,
            r"attention is a SEBlock already built, .*pass the class",
        ),
        (
            lambda: build_resnet("resnet18", lambda _: None),
            TypeError,
            r"\(64\) must return an nn.Module, got None",
        ),
        (
            lambda: build_resnet("resnet18", lambda _: 3, where="block"),
            TypeError,
            r"attention\(64\) must return an nn.Module, got int",
        ),
        (lambda: build_resnet("resnet18", attention_kwargs={"reduction": 4}), TypeError, r"but attention is None"),
        (
            lambda: build_resnet("resnet18", Scale, attention_kwargs={"reduction": 4}),
            TypeError,
            r"attention_kwargs go to blocks given by name",
        ),
        (
            lambda: build_resnet("resnet18", {"stem": Scale}, attention_kwargs={"reduction": 4}),
            TypeError,
            r"attention_kwargs go to blocks given by name",
        ),
        (lambda: build_resnet("resnet18", "eca", attention_kwargs={"reduction": 4}), TypeError, r"'reduction'"),
        (
            lambda: build_resnet("resnet18", "se", attention_kwargs={"reduction": 65}),
            ValueError,
            r"reduction=65 leaves no hidden channel",
        ),
        (lambda: build_resnet("resnet18", num_classes=0), ValueError, r"num_classes must be a positive integer, got 0"),
        (lambda: build_resnet("resnet18", num_classes=True), ValueError, r"num_classes must be a positive integer"),
        (lambda: build_resnet("resnet18", num_classes="10"), ValueError, r"num_classes must be .* got '10'"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message), torch.device("meta"):
        call()


# The tutorial's model.


def tutorial_keys(attention: str) -> list[str]:
    with torch.device("meta"):
        base = [f"base_model.{key}" for key in build_resnet("resnet50").state_dict()]
        block = list(BLOCKS[attention](64).state_dict())
    return base + [f"attention_layer{i}.{key}" for i in (1, 2) for key in block]


@pytest.mark.parametrize("attention", sorted(BLOCKS))
def test_the_tutorial_model_has_the_tutorial_keys(attention):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = ResNetWithAttention(BLOCKS[attention], pretrained=False)
        theirs = models.resnet50().state_dict()
    state = model.state_dict()
    assert list(state) == tutorial_keys(attention)
    assert [key for key in state if key.startswith("base_model.")] == [f"base_model.{key}" for key in theirs]
    for number, channels in ((1, 64), (2, 2048)):
        own = getattr(model, f"attention_layer{number}").state_dict()
        with torch.device("meta"):
            fresh = BLOCKS[attention](channels).state_dict()
        assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in fresh.items()}


def test_the_tutorial_model_loads_strictly_and_computes_the_same():
    torch.manual_seed(0)
    model = with_statistics(ResNetWithAttention(reference.SEBlock, pretrained=False)).eval()
    other = ResNetWithAttention(reference.SEBlock, pretrained=False).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    other.load_state_dict(state, strict=True)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert expected.shape == (1, 1000)
        assert torch.equal(other(x), expected)
        # The network with sites, given the same numbers under its own names, gives the same logits.
        renamed = {
            key.replace("base_model.", "")
            .replace("attention_layer1.", "attention.stem.")
            .replace("attention_layer2.", "attention.layer4."): value
            for key, value in state.items()
        }
        assert torch.equal(build_resnet("resnet50", "se", weights=renamed).eval()(x), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({key: value for key, value in state.items() if key != "attention_layer1.fc1.bias"})


def test_the_tutorial_model_takes_any_callable():
    with torch.device("meta"):
        model = ResNetWithAttention(Scale, pretrained=False)
    assert model.attention_layer1.gain.shape == (64, 1, 1)
    assert model.attention_layer2.gain.shape == (2048, 1, 1)
