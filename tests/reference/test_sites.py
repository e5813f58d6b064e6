"""Sites: attention where it was asked for, in every form of asking, errors in words."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.images import images, with_statistics
from triton_attn import reference
from triton_attn.reference import build_resnet
from triton_attn.reference.registry import BLOCKS, SITES
from triton_attn.reference.resnet import ARCHITECTURES, BasicBlock, Bottleneck, paper_places

STAGES = ("layer1", "layer2", "layer3", "layer4")


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
def test_site_keys_and_channels(name):
    seen: dict[str, list[int]] = {site: [] for site in SITES}

    def factory(site: str, channels: int) -> nn.Module:
        seen[site].append(channels)
        return Scale(channels)

    with torch.device("meta"):
        plain = set(build_resnet(name).state_dict())
        state = build_resnet(name, {site: functools.partial(factory, site) for site in SITES}).state_dict()
    assert seen == channels_of(name)
    depths = ARCHITECTURES[name][1]
    places = {site: [f"{site}.attention"] for site in STAGES} | {"stem": ["attention.stem"]}
    places["paper"] = [f"{place}.after.attention" for place in PAPER[name]]
    places["block"] = [f"layer{k + 1}.{i}.attention" for k, depth in enumerate(depths) for i in range(depth)]
    assert {key: value.shape[0] for key, value in state.items() if key not in plain} == {
        f"{place}.gain": channels for site in SITES for place, channels in zip(places[site], seen[site], strict=True)
    }
    assert plain <= set(state)


def test_where_the_paper_attends():
    for name, places in PAPER.items():
        depths = ARCHITECTURES[name][1]
        found = [f"layer{k}.{i}" for k, most in ((2, 2), (3, 3)) for i in paper_places(depths[k - 1], most)]
        assert found == places, name


def test_the_default_sites_are_the_tutorials():
    with torch.device("meta"):
        model = build_resnet("resnet50", "se")
    assert {site: block.fc1.in_features for site, block in model.sites().items()} == {"stem": 64, "layer4": 2048}
    assert all(block.attention is None for block in model.layer1)


@pytest.mark.parametrize("shortcut", [True, False], ids=["takes a shortcut", "takes none"])
def test_attention_acts_where_it_stands(shortcut):
    """At all sites of one network: an attention that is left out, or stands elsewhere, changes the logits."""
    torch.manual_seed(0)
    factory = functools.partial(reference.SEBlock, reduction=8) if shortcut else Scale
    model = with_statistics(build_resnet("resnet18", factory, where=SITES, num_classes=6)).eval().double()
    x = images(1, 3, 40, 48).double()

    def block(layer: BasicBlock, x: Tensor) -> Tensor:
        branch = layer.bn2(layer.conv2(F.relu(layer.bn1(layer.conv1(x)))))
        branch = layer.attention(branch)  # on the branch, before the addition
        y = F.relu(branch + (x if layer.downsample is None else layer.downsample(x)))
        return y if layer.after is None else layer.after[0](y)

    def forward(skipped: str | None = None) -> Tensor:
        y = F.relu(model.bn1(model.conv1(x)))
        y = F.max_pool2d(y if skipped == "stem" else model.attention.stem(y), 3, stride=2, padding=1)
        for stage in STAGES:
            *blocks, attention = getattr(model, stage)
            for layer in blocks:
                y = block(layer, y)
            y = y if skipped == stage else attention(y)
        return model.fc(y.mean((2, 3)))

    with torch.no_grad():
        expected = forward()
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        for site in ("stem", *STAGES):
            assert (forward(site) - expected).abs().max() > 1e-6, site
    behind = [layer for stage in STAGES for layer in getattr(model, stage)[:-1] if layer.after is not None]
    assert behind == [model.layer2[1], model.layer3[1]]


# A stride and a branch of its own for the shortcut change nothing in how a block is called.
@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_block_site_in_a_bottleneck(name):
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(32, 64, 1, stride=2, bias=False), nn.BatchNorm2d(64))
    block = with_statistics(Bottleneck(32, 16, 2, downsample, BLOCKS[name])).eval().double()
    x = images(2, 32, 9, 8).double()
    branch = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
    expected = F.relu(block.attention(branch) + downsample(x))
    assert block.conv2.stride == (2, 2)
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
    found = {site: type(module).__name__ for site, module in model.sites().items()}
    blocks = [block for stage in STAGES for block in getattr(model, stage) if isinstance(block, BasicBlock)]
    within = {type(block.attention).__name__ for block in blocks} - {"NoneType"}
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
    assert model.sites()["stem"].fc1.out_features == 16
    assert model.layer4[1].attention.channel_attention.fc1.out_features == 128
    wide = build_resnet("resnet18", "eca", where="stem", attention_kwargs={"kernel_size": 7})
    assert wide.sites()["stem"].conv.weight.shape == (1, 1, 7)


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
