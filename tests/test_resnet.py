"""The networks a user builds: the plain ones' numbers and checkpoints, with the fast blocks inside."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pickle
import pydoc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import triton_attn
from triton_attn import reference
from triton_attn import resnet as networks
from triton_attn.reference import ResNet, build_resnet
from triton_attn.reference.resnet import BasicBlock, Bottleneck
from triton_attn.registry import ALL, BLOCKS
from triton_attn.resnet import resnet18, resnet34, resnet50, resnet101, resnet152

CONSTRUCTORS = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
}


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(0))


# Every block, at one site or another, in two networks and not in one each: what a block does, its own tests say.
SITES = (
    {"stem": "se", "layer1": "eca", "layer2": "cbam", "layer3": "nonlocal", "block": "coordinate", "paper": "pixel"},
    {"layer2": "gate", "layer4": "dual", "block": "se"},
)


def test_constructors_build_their_depth(monkeypatch):
    built = []
    monkeypatch.setattr(networks, "build_resnet", lambda *given, **named: built.append((given, named)))
    for name, make in CONSTRUCTORS.items():
        make("se", where="stem", num_classes=7)
        assert built.pop() == (
            (name, "se"),
            {"where": "stem", "attention_kwargs": None, "weights": None, "num_classes": 7, "blocks": ALL},
        )


def test_constructors_show_their_parameters():
    for name, make in CONSTRUCTORS.items():
        parameters = inspect.signature(make).parameters
        assert list(parameters) == ["attention", "where", "attention_kwargs", "weights", "num_classes"]
        assert [p.default for p in parameters.values()] == [None, ("stem", "layer4"), None, None, 1000]
        assert parameters["attention"].kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert all(p.kind == inspect.Parameter.KEYWORD_ONLY for p in list(parameters.values())[1:])
        assert (make.__name__, make.__qualname__, make.__module__) == (name, name, "triton_attn.resnet")
        assert pickle.loads(pickle.dumps(make)) is make
        text = pydoc.plain(pydoc.render_doc(make))
        assert f"{name}(attention: 'Sites' = None, *, where" in text
        assert f"Build a ResNet-{name[6:]}, with attention where it is wanted." in text
    with pytest.raises(TypeError, match="unexpected keyword argument 'pretrained'"):
        resnet34(pretrained=True)


@pytest.mark.parametrize("sites", SITES)
def test_checkpoints_pass_between_fast_and_plain(sites):
    torch.manual_seed(0)
    fast = resnet18(sites, num_classes=5).eval()
    for block, name in [
        (fast.layer1[1].attention, sites["block"]),
        *((each, sites[at]) for at, each in fast.sites().items()),
    ]:
        assert type(block) is BLOCKS[name]
        assert type(block).__module__.startswith("triton_attn.blocks.")
    assert fast.layer1[0].takes_shortcut
    plain = build_resnet("resnet18", sites, num_classes=5).eval()
    x = images()
    with torch.no_grad():
        assert not torch.equal(fast(x), plain(x))
        plain.load_state_dict(fast.state_dict(), strict=True)
        expected = plain(x)
        assert torch.equal(fast(x), expected)
        with triton_attn.use_backend("reference"):
            assert torch.equal(fast(x), expected)


def test_a_checkpoint_in_a_file(tmp_path, caplog):
    torch.manual_seed(0)
    plain = resnet18(num_classes=5).eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="triton_attn"):
        model = resnet18("se", weights=tmp_path / "plain.pth", num_classes=5).eval()
    assert "8 attention keys" in caplog.text
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize("sites", SITES)
def test_training_step(sites):
    torch.manual_seed(0)
    model = resnet18(sites, num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in model.named_parameters()}
    loss = F.cross_entropy(model(images(2, 3, 48, 48)), torch.tensor([0, 3]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        # A shift of every score of a row, which no softmax sees: its gradient is zero but for rounding.
        if not key.endswith("key_conv.bias"):
            assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("attention", [triton_attn.SEBlock, triton_attn.ECABlock])
def test_on_a_cpu_a_residual_block_is_its_modules_called_one_by_one(attention):
    """To the bit, gradients and running statistics too: the batch norm goes into an op where Triton serves."""
    torch.manual_seed(0)
    block = Bottleneck(32, 8, attention=attention)
    plain = copy.deepcopy(block)

    def one_by_one(x: Tensor) -> Tensor:
        y = F.relu(plain.bn2(plain.conv2(F.relu(plain.bn1(plain.conv1(x))))))
        y = plain.bn3(plain.conv3(y))
        gated = plain.attention(y)
        assert gated is not y
        return F.relu(gated + x)

    x = torch.randn(2, 32, 5, 6)
    for forward in (block, one_by_one):
        forward(x).square().mean().backward()
    for (name, ours), own in zip(block.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, own.grad), name
    for (name, ours), own in zip(block.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, own), name
    with torch.no_grad():
        assert torch.equal(block.eval()(x), plain.eval() and one_by_one(x))


def test_channels_last_and_autocast_give_the_same_logits():
    torch.manual_seed(0)
    model = resnet18({"stem": "cbam", "block": "se"}, num_classes=4).eval()
    x = images()
    with torch.no_grad():
        expected = model(x)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            last(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(x).float(), expected, rtol=0.1, atol=0.1)
        torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-3, atol=1e-4)


# Copying, saving, exporting.


def small(seed: int = 0) -> nn.Module:
    """A ResNet of one block a stage."""
    torch.manual_seed(seed)
    attention = {"stem": BLOCKS["coordinate"], "layer2": BLOCKS["nonlocal"], "block": BLOCKS["se"]}
    return ResNet(BasicBlock, (1, 1, 1, 1), 4, attention).eval()


def test_copies_and_pickles():
    model, x = small(), images()
    with torch.no_grad():
        expected = model(x)
        copied = copy.deepcopy(model)
        assert torch.equal(copied(x), expected)
        copied.conv1.weight.data.zero_()
        assert torch.equal(model(x), expected)
        whole = pickle.loads(pickle.dumps(model))
        assert torch.equal(whole(x), expected)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        other = small(1)
        assert not torch.equal(other(x), expected)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(x), expected)


def test_export():
    model, x = small(), images()
    exported = torch.export.export(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), model(x))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in")) for target in targets), targets


@pytest.mark.filterwarnings("ignore")
def test_trace():
    model, x = small(), images()
    with torch.no_grad():
        traced = torch.jit.trace(model, x, check_trace=False)
        torch.testing.assert_close(traced(x), model(x))


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"attention": "sebam"},
            r"unknown attention 'sebam'; did you mean 'cbam'\? \(known: .*, pixel, published\.cbam, .*, se\)",
        ),
        ({"attention": "se", "where": "layer9"}, r"unknown site 'layer9'; did you mean 'layer\d'\?"),
        ({"attention": {"blocks": "se"}}, r"unknown site 'blocks'; did you mean 'block'\?"),
        ({"num_classes": -1}, r"num_classes must be a positive integer, got -1"),
        ({"attention": "se", "attention_kwargs": {"reduction": 128}}, r"reduction=128 leaves no hidden channel"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet18(**arguments)


def test_where_is_keyword_only():
    with pytest.raises(TypeError):
        resnet18("se", "stem")


def test_wrong_images_reach_torch_and_wrong_maps_the_block():
    model = resnet18("se", num_classes=2)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="x must have 64 channels"):
        model.sites()["stem"](torch.zeros(1, 3, 8, 8))


# The tutorial's model.


def test_the_tutorial_model_takes_fast_and_plain_blocks():
    with torch.device("meta"):
        fast = triton_attn.ResNetWithAttention(triton_attn.CBAM, pretrained=False)
        plain = reference.ResNetWithAttention(reference.CBAM, pretrained=False)
    assert type(fast.attention_layer1) is triton_attn.CBAM
    assert type(plain.attention_layer2) is reference.CBAM
    assert list(fast.state_dict()) == list(plain.state_dict())


def test_the_tutorial_model_wants_weights_by_default():
    parameters = inspect.signature(triton_attn.ResNetWithAttention).parameters
    assert list(parameters) == ["attention_cls", "pretrained"]
    assert parameters["pretrained"].default is True
