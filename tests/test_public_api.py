"""The public surface: every name of it, documented and typed."""

from __future__ import annotations

import inspect
import types
import typing

import pytest
import torch
from torch import nn

import triton_attn
from triton_attn import reference, registry
from triton_attn.reference import registry as plain_registry

CLASSES = {
    "AttentionGate": "gate",
    "AttentionModule": "pixel",
    "CBAM": "cbam",
    "CoordinateAttention": "coordinate",
    "DualAttentionBlock": "dual",
    "ECABlock": "eca",
    "NonLocalBlock": "nonlocal",
    "SEBlock": "se",
}
FUNCTIONS = (
    "create_attention",
    "explain",
    "list_attention",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "use_backend",
)


def test_every_name_is_there():
    names = {*CLASSES, *FUNCTIONS, "ResNetWithAttention", "functional", "published", "reference"}
    assert names <= set(triton_attn.__all__)
    assert names <= set(dir(triton_attn))
    assert sorted(set(triton_attn.__all__)) == sorted(triton_attn.__all__), "a name twice"
    for name in triton_attn.__all__:
        assert hasattr(triton_attn, name), name
    assert isinstance(triton_attn.reference, types.ModuleType)
    assert isinstance(triton_attn.functional, types.ModuleType)
    assert triton_attn.__version__.count(".") == 2


def test_list_attention():
    assert triton_attn.list_attention() == ["cbam", "coordinate", "dual", "eca", "gate", "nonlocal", "pixel", "se"]
    triton_attn.list_attention().clear()
    assert len(triton_attn.list_attention()) == 8, "the caller gets a list of their own"


# Theirs is a forward that takes the batch norm before it in as well.
BEHIND = {key: {"behind"} for key in ("se", "eca", "published.se", "published.coordinate", "published.cbam")}


@pytest.mark.parametrize(("cls", "name"), CLASSES.items())
def test_blocks_are_their_references_subclasses(cls, name):
    fast, plain = getattr(triton_attn, cls), getattr(reference, cls)
    assert fast is not plain
    assert issubclass(fast, plain)
    assert issubclass(fast, reference.AttentionBlock)
    assert inspect.signature(fast) == inspect.signature(plain)
    assert inspect.signature(fast.forward) == inspect.signature(plain.forward)
    own = {key for key, value in vars(fast).items() if callable(value)}
    assert own == {"forward"} | BEHIND.get(name, set()), "a block overrides its forwards alone"
    created = triton_attn.create_attention(name, 32)
    assert type(created) is fast
    assert created.state_dict().keys() == plain(32).state_dict().keys()
    created.load_state_dict(plain(32).state_dict(), strict=True)
    x = torch.randn(2, 32, 5, 5)
    assert created(x).shape == x.shape


@pytest.mark.parametrize("name", triton_attn.list_attention("published"))
def test_published_blocks_are_their_references_subclasses(name):
    fast, plain = registry.PUBLISHED[name], plain_registry.PUBLISHED[name]
    assert issubclass(fast, reference.AttentionBlock)
    assert inspect.signature(fast) == inspect.signature(plain)
    assert inspect.signature(fast.forward) == inspect.signature(plain.forward)
    own = {key for key, value in vars(fast).items() if callable(value)}
    wanted = {"forward"} | BEHIND.get(name, set()) if name != "published.eca" else set()
    assert own == wanted, "a block overrides its forwards alone"
    assert getattr(triton_attn.published, fast.__name__) is fast
    assert getattr(reference.published, fast.__name__) is plain
    created, twin = triton_attn.create_attention(name, 32).eval(), plain(32).eval()
    assert type(created) is fast
    twin.load_state_dict(created.state_dict(), strict=True)
    x = torch.randn(2, 32, 5, 5)
    assert torch.equal(created(x), twin(x)), "on a CPU a block is its twin"
    assert torch.equal(created(x, shortcut=x), twin(x, shortcut=x))


def test_create_attention_passes_arguments_on():
    assert triton_attn.create_attention("se", 256, reduction=8).fc1.weight.shape == (32, 256)
    assert triton_attn.create_attention("eca", 512, kernel_size=None).conv.weight.shape == (1, 1, 5)
    gate = triton_attn.create_attention("gate", 16, gating_channels=4, dtype=torch.float16, device="meta")
    assert gate.conv2.weight.shape == (8, 4, 1, 1)
    assert gate.conv2.weight.dtype == torch.float16
    assert gate.conv2.weight.is_meta


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("SE", None),
        ("sse", "se"),
        ("non-local", "nonlocal"),
        ("coord", "coordinate"),
        ("cbm", "cbam"),
        ("pixels", "pixel"),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_create_attention_refuses_unknown_names(name, near):
    with pytest.raises(ValueError, match=r"^unknown attention .* \(known: cbam, coordinate, .*, se\)$") as error:
        triton_attn.create_attention(name, 64)
    assert repr(name) in str(error.value)
    if near is not None:
        assert f"did you mean {near!r}?" in str(error.value)


def test_create_attention_refuses_wrong_arguments():
    with pytest.raises(ValueError, match=r"reduction=128 leaves no hidden channel: 64 channels // 128 = 0"):
        triton_attn.create_attention("se", 64, reduction=128)
    with pytest.raises(ValueError, match=r"channels must be a positive integer, got 0"):
        triton_attn.create_attention("cbam", 0)
    with pytest.raises(TypeError, match=r"kernel_size"):
        triton_attn.create_attention("se", 64, kernel_size=3)


def test_use_backend():
    x, block = torch.randn(1, 16, 3, 3), triton_attn.SEBlock(16)
    expected = block(x)
    for name in ("auto", "reference"):
        with triton_attn.use_backend(name):
            assert torch.equal(block(x), expected)
    with (
        triton_attn.use_backend("triton"),
        pytest.raises(triton_attn.BackendError, match=r"not on a GPU|not installed"),
    ):
        block(x)
    with (
        pytest.raises(ValueError, match=r"unknown backend 'cuda', expected one of auto, triton, reference"),
        triton_attn.use_backend("cuda"),
    ):
        pass


def test_explain():
    model = triton_attn.resnet18({"stem": "se", "block": "eca"}, num_classes=2)
    found = triton_attn.explain(model, torch.zeros(1, 3, 32, 32))
    assert [(each.name, each.block, each.backend) for each in found[:2]] == [
        ("attention.stem", "SEBlock", "reference"),
        ("layer1.0.attention", "ECABlock", "reference"),
    ]
    assert len(found) == 9
    assert all(each.reason for each in found)
    assert model.training
    assert "layer4.1.attention" in str(found)


# Documented and typed.


def public() -> list[tuple[str, object]]:
    """Every public class and function, with the public methods that this package defines."""
    found: list[tuple[str, object]] = []
    for module in (triton_attn, triton_attn.published, reference, reference.published, triton_attn.functional):
        for name in getattr(module, "__all__", None) or vars(module):
            each = getattr(module, name)
            if name.startswith("_") or not (inspect.isfunction(each) or inspect.isclass(each)):
                continue
            if not each.__module__.startswith("triton_attn"):
                continue
            found.append((f"{module.__name__}.{name}", each))
            if inspect.isclass(each):
                found += [
                    (f"{module.__name__}.{name}.{key}", value)
                    for key, value in vars(each).items()
                    if inspect.isfunction(value) and (not key.startswith("_") or key == "__init__")
                ]
    return found


PUBLIC = dict(public())


def test_the_list_of_what_is_public_is_not_empty():
    assert {
        "triton_attn.SEBlock",
        "triton_attn.SEBlock.forward",
        "triton_attn.reference.ResNet",
        "triton_attn.resnet50",
    } <= {*PUBLIC}
    assert len(PUBLIC) > 60


# A constructor's arguments are documented with its class.
@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.endswith(".__init__")])
def test_public_names_are_documented(name):
    text = inspect.getdoc(PUBLIC[name])  # a method may have its base class's
    assert text, name
    assert text[0].isupper() or text.startswith(("`", "q, k")), text
    if inspect.isclass(PUBLIC[name]) and "Error" not in name:
        signature = inspect.signature(PUBLIC[name])
        for parameter in set(signature.parameters) - {"args", "kwargs"}:
            assert parameter in text, f"{name} does not say what {parameter} is"


@pytest.mark.parametrize("name", [name for name, each in PUBLIC.items() if inspect.isfunction(each)])
def test_public_functions_are_typed(name):
    function = inspect.unwrap(PUBLIC[name])
    hints = typing.get_type_hints(function)
    parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
    assert "return" in hints, name
    assert set(parameters) <= set(hints), f"{name}: {set(parameters) - set(hints)} without a type"


def test_blocks_are_modules_with_a_repr():
    assert isinstance(triton_attn.SEBlock(16), nn.Module)
    assert repr(triton_attn.SEBlock(16)).startswith("SEBlock(")
