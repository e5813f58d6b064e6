"""Networks handed on: whoever takes one apart, traces it or reads its maps, gets the attention with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn.reference import ResNet, build_resnet
from triton_attn.reference.resnet import BasicBlock, Bottleneck

STAGES = ("layer1", "layer2", "layer3", "layer4")
SITES = {"stem": "se", "layer1": "eca", "layer3": "coordinate", "layer4": "se", "block": "eca", "paper": "gate"}


def images(side: int = 32) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A ResNet-18 with attention at every kind of site, none of which is near to changing nothing."""
    torch.manual_seed(0)
    model = triton_attn.resnet18(SITES, num_classes=5).eval()
    for name, parameter in model.named_parameters():
        if "attention" in name.split("."):
            nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def maps(network: nn.Module) -> dict[str, Tensor]:
    """What the network's own call computes behind every site, seen by hooks; and its logits."""
    found: dict[str, Tensor] = {}
    last = {"stem": network.attention} | {stage: getattr(network, stage) for stage in STAGES}
    handles = [
        module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.clone()}))
        for name, module in last.items()
    ]
    found["logits"] = network(images())
    for handle in handles:
        handle.remove()
    return found


def without_attention(network: nn.Module) -> dict[str, Tensor]:
    """The maps of the same network with its attention left out."""
    plain = build_resnet("resnet18", num_classes=5).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "attention" not in k.split(".")})
    with torch.no_grad():
        return dict(zip(("stem", *STAGES), plain.features(images()), strict=True))


def same(found: Tensor, expected: Tensor) -> bool:
    """But for the order of sums: another graph may fold or fuse."""
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_its_own_maps(network, maps):
    found = network.features(images())
    assert [each.shape[1:] for each in found] == [(64, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]
    for site, each in zip(("stem", *STAGES), found, strict=True):
        assert torch.equal(each, maps[site]), site
    plain = without_attention(network)
    assert not any(same(maps[site], plain[site]) for site in ("stem", *STAGES)), "attention counts in every map"
    assert torch.equal(network.forward_features(images()), maps["layer4"])
    assert torch.equal(network.forward_head(maps["layer4"]), maps["logits"])


def test_attention_is_a_child_where_it_runs(network):
    names = [name for name, _ in network.named_children()]
    assert names == ["conv1", "bn1", "relu", "attention", "maxpool", *STAGES, "avgpool", "fc"]
    assert [name for name, _ in network.layer4.named_children()] == ["0", "1", "attention"]
    assert list(network.sites()) == ["stem", "layer1", "layer3", "layer4"]
    assert network.sites()["layer4"] is network.layer4.attention
    assert triton_attn.resnet18().sites() == {}


def test_children_in_a_row(network, maps):
    row = nn.Sequential(*list(network.children())[:-1])
    assert torch.equal(row(images()).flatten(1), maps["layer4"].mean((2, 3)))


def test_torchvisions_getter_and_builders(network, maps):
    pytest.importorskip("torchvision")
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.segmentation.deeplabv3 import _deeplabv3_resnet
    from torchvision.models.segmentation.fcn import _fcn_resnet

    getter = IntermediateLayerGetter(network, {"attention": "stem"} | {stage: stage for stage in STAGES})
    for site, found in getter(images()).items():
        assert torch.equal(found, maps[site]), site
    model = copy.deepcopy(network)  # to be frozen and trained in parts
    pyramid = _resnet_fpn_extractor(model, 2).eval()
    seen = {}
    pyramid.body.register_forward_hook(lambda _, __, y: seen.update(y))
    assert pyramid(images())["0"].shape == (1, 256, 8, 8)
    assert all(torch.equal(seen[str(i)], maps[stage]) for i, stage in enumerate(STAGES))
    deep = ResNet(Bottleneck, (1, 1, 1, 1), 5, {"layer3": triton_attn.ECABlock, "layer4": triton_attn.ECABlock}).eval()
    expected = deep.forward_features(images())
    for builder, aux in ((_fcn_resnet, True), (_deeplabv3_resnet, None)):
        segmenter = builder(copy.deepcopy(deep), 3, aux).eval()
        segmenter.backbone.register_forward_hook(lambda _, __, y: seen.update(y))
        assert segmenter(images())["out"].shape == (1, 3, 32, 32)
        assert torch.equal(seen["out"], expected)


def test_torchvisions_feature_extractor(network, maps):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    extractor = extraction.create_feature_extractor(network, ["attention.stem", "layer1", "layer3.attention", "layer4"])
    found = extractor(images())
    for node, site in (("attention.stem", "stem"), ("layer1",) * 2, ("layer3.attention", "layer3"), ("layer4",) * 2):
        assert same(found[node], maps[site]), node


def test_timms_feature_lists(network, maps):
    features = pytest.importorskip("timm.models._features")
    found = features.FeatureListNet(network, out_indices=(0, 1, 4))(images())
    for site, each in zip(("stem", "layer1", "layer4"), found, strict=True):
        assert torch.equal(each, maps[site]), site
    assert network.num_features == network.inplanes == 512
    assert triton_attn.resnet18().feature_info[0] == {"num_chs": 64, "reduction": 2, "module": "relu"}


@pytest.mark.filterwarnings("ignore")  # deprecated, and in use
def test_a_plain_network_scripts_and_traces():
    for block in (BasicBlock, Bottleneck):
        model = ResNet(block, (1, 2, 1, 1), 3).eval()
        assert same(torch.jit.script(model)(images()), model(images()))
    assert same(torch.jit.trace(model, images())(images(48)), model(images(48)))


def test_checkpoints_with_the_keys_of_earlier_versions(network, tmp_path):
    state = network.state_dict()
    earlier = {key.replace(f"{key[:6]}.attention.", f"attention.{key[:6]}.", 1): v for key, v in state.items()}
    assert {key.rpartition(".")[0] for key in earlier if key.startswith("attention.")} == {
        "attention.stem.fc1",
        "attention.stem.fc2",
        "attention.layer1.conv",
        "attention.layer3.fc",
        "attention.layer3.fc_out",
        "attention.layer4.fc1",
        "attention.layer4.fc2",
    }
    torch.save(earlier, tmp_path / "earlier.pth")
    read = triton_attn.resnet18(SITES, num_classes=5, weights=tmp_path / "earlier.pth")
    held = nn.ModuleDict({"net": triton_attn.resnet18(SITES, num_classes=5)})
    held.load_state_dict({f"net.{key}": value for key, value in earlier.items()})
    for model in (read, held["net"]):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Unexpected.*attention\.layer1\.conv"):
        triton_attn.resnet18("se", where="stem", num_classes=5).load_state_dict(earlier)


def test_a_seed_gives_the_same_network_as_ever():
    """Attention is made last, wherever it stands: what was drawn before it is what it is without any."""
    made = []
    for attention in ({"layer3": "eca", "stem": "se", "paper": "gate"}, None):
        torch.manual_seed(5)
        made.append(triton_attn.resnet18(attention, num_classes=2))
    assert torch.equal(made[0].fc.weight, made[1].fc.weight)
