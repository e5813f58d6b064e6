"""Weights of every accepted kind into a network, every key accounted for, every wrong file refused in words."""

from __future__ import annotations

import io
import logging
import pickle
import sys
import urllib.error
from collections import OrderedDict
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from triton_attn.reference import ResNetWithAttention, SEBlock, build_resnet
from triton_attn.reference.weights import check_keys, read_weights

torchvision = pytest.importorskip("torchvision")
safetensors_torch = pytest.importorskip("safetensors.torch")

from torchvision.models import ResNet18_Weights, ResNet50_Weights  # noqa: E402
from torchvision.models._api import WeightsEnum  # noqa: E402


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model = torchvision.models.resnet18(num_classes=7)
    generator = torch.Generator().manual_seed(4)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(generator=generator)
    return model.state_dict()


@pytest.fixture(scope="module")
def small(state) -> dict[str, torch.Tensor]:
    """The small ones of them, for what is about files."""
    return {key: value for key, value in state.items() if value.numel() < 1000}


def read(weights) -> Mapping[str, torch.Tensor]:
    return read_weights(weights, "resnet18")


def build(weights, attention=None, **kwargs) -> nn.Module:
    return build_resnet("resnet18", attention, weights=weights, num_classes=kwargs.pop("num_classes", 7), **kwargs)


def assert_loaded(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    for key, value in state.items():
        assert torch.equal(own[key], value), key


# Every accepted kind.


def test_a_state_dict(state):
    copied = build(OrderedDict(state))
    assert_loaded(copied, state)
    copied.conv1.weight.data.zero_()
    assert state["conv1.weight"].any(), "the model must hold copies"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", "", ".safetensors"])
def test_a_file(small, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    (safetensors_torch.save_file if suffix == ".safetensors" else torch.save)(small, path)
    for given in (path, str(path)):
        found = read(given)
        assert found.keys() == small.keys()
        assert all(torch.equal(found[key], value) for key, value in small.items())


def test_a_file_into_a_network(state, tmp_path):
    safetensors_torch.save_file(state, tmp_path / "weights.safetensors")
    assert_loaded(build(tmp_path / "weights.safetensors"), state)


@pytest.fixture
def no_download(monkeypatch, state):
    asked = []

    def get_state_dict(self, *args, **kwargs):  # noqa: ARG001
        asked.append(self)
        return state

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    return asked


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (ResNet18_Weights.IMAGENET1K_V1, ResNet18_Weights.IMAGENET1K_V1),
        ("IMAGENET1K_V1", ResNet18_Weights.IMAGENET1K_V1),
        ("DEFAULT", ResNet18_Weights.DEFAULT),
        ("ResNet18_Weights.IMAGENET1K_V1", ResNet18_Weights.IMAGENET1K_V1),
        ("ResNet18_Weights.DEFAULT", ResNet18_Weights.DEFAULT),
    ],
    ids=str,
)
def test_a_torchvision_enum_or_its_name(state, no_download, weights, expected):
    assert read(weights) is state
    assert no_download == [expected]


def test_files_older_than_the_batch_counters_load(state, tmp_path):
    # torchvision's IMAGENET1K_V1 files have no num_batches_tracked, and load strictly into torchvision's own model.
    old = OrderedDict((key, value) for key, value in state.items() if not key.endswith("num_batches_tracked"))
    assert len(old) == 102
    torchvision.models.resnet18(num_classes=7).load_state_dict(old)
    torch.save(old, tmp_path / "old.pth")
    model = build(tmp_path / "old.pth")
    assert_loaded(model, old)
    assert all(v == 0 for k, v in model.state_dict().items() if k.endswith("num_batches_tracked"))


# Keys.


def test_only_attention_keys_may_be_missing_and_are_logged(state, caplog):
    with caplog.at_level(logging.WARNING, logger="triton_attn"):
        model = build(state, {"stem": "se", "layer3": "cbam", "block": "eca"})
    assert_loaded(model, state)
    (record,) = caplog.records
    missing = [key for key in model.state_dict() if key not in state]
    assert record.name == "triton_attn"
    assert record.levelno == logging.WARNING
    assert f"{len(missing)} attention keys" in record.getMessage()
    for key in missing[:8]:
        assert key in record.getMessage()
    assert f"and {len(missing) - 8} more" in record.getMessage()


def test_nothing_is_logged_when_every_key_is_there(state, caplog):
    build(state)
    full = build(state, "se").state_dict()
    caplog.clear()
    model = build(full, "se")
    assert not caplog.records
    assert_loaded(model, full)


def test_some_attention_may_be_there_and_some_not(state, caplog):
    partial = build(state, "se", where="stem").state_dict()
    caplog.clear()
    model = build(partial, {"stem": "se", "layer4": "se"})
    assert_loaded(model, partial)
    assert "4 attention keys" in caplog.text
    assert "layer4.attention.fc1.weight" in caplog.text
    assert "attention.stem" not in caplog.text


def test_every_other_difference_is_an_error_that_names_the_keys(state):
    plain, stem = (build_resnet("resnet18", each, where="stem", num_classes=7).state_dict() for each in (None, "se"))
    lacking = {key: value for key, value in state.items() if key != "layer2.0.bn1.running_var"}
    reshaped = state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    wider = stem | {"attention.stem.fc1.weight": torch.zeros(8, 64)}
    for own, given, message in (
        (plain, lacking, r"weights do not fit the model\. missing: layer2\.0\.bn1\.running_var$"),
        (plain, state | {"surplus.weight": torch.zeros(1)}, r"not of this model: surplus\.weight$"),
        (plain, stem, r"not of this model: attention\.stem\.fc1\.weight, .*bias$"),
        (plain, reshaped, r"of another shape: conv1\.weight \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)$"),
        (wider, stem, r"of another shape: attention\.stem\.fc1\.weight \(4, 64\), expected \(8, 64\)"),
        (
            plain,
            lacking | {"surplus": torch.zeros(1)},
            r"missing: layer2\.0\.bn1\.running_var\. not of this model: surplus",
        ),
        (plain, {}, r"missing: conv1\.weight, .* and \d+ more"),
    ):
        with pytest.raises(ValueError, match=message):
            check_keys(own, given)
    with pytest.raises(ValueError, match="missing: conv1"):
        build({})


def test_a_failed_load_names_another_architecture(state):
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"missing: layer1\.0\.conv3\.weight, .* of another shape: layer1\.0\.conv1"),
    ):
        build_resnet("resnet50", weights=state, num_classes=7)


def test_another_number_of_classes_says_what_to_do(state):
    with pytest.raises(
        ValueError, match=r"of another shape: fc\.weight \(7, 512\), expected \(10, 512\), fc\.bias"
    ) as error:
        build(state, num_classes=10)
    assert "build with the weights' num_classes and then replace model.fc" in str(error.value)


# Files that are none.


def test_missing_files(tmp_path):
    for name in ("none.pth", "none.pt", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=rf"weights: no file at .*{name}"):
            read(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="weights: no file at"):
        read(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="weights: no file at"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_truncated_files(small, tmp_path, suffix, kept):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(small, path)
    else:
        safetensors_torch.save_file(small, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=rf"weights: .*cut\{suffix} cannot be read \(\w+: "):
        read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".txt"])
def test_foreign_files(tmp_path, suffix):
    path = tmp_path / f"foreign{suffix}"
    path.write_text("These are not weights, but a paragraph of text that someone gave a misleading name.\n" * 9)
    with pytest.raises(ValueError, match=r"weights: .*foreign.* cannot be read \("):
        read(str(path))


class Malicious:
    ran = False

    def __reduce__(self):
        return (exec, ("import triton_attn; triton_attn.pwned = True",))


@pytest.mark.parametrize("pickler", ["torch", "plain"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, pickler):
    import triton_attn

    path = tmp_path / "code.pth"
    if pickler == "torch":
        torch.save({"conv1.weight": Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=r"weights: .*code\.pth cannot be read \(UnpicklingError"):
        read(path)
    assert not hasattr(triton_attn, "pwned")


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"module\.pth cannot be read"):
        read(tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
        ({"epoch": 3}, "'epoch': int"),
        ({0: torch.zeros(1)}, "0: Tensor"),
    ],
    ids=["list", "tensor", "number", "numbered"],
)
def test_files_without_a_state_dict(tmp_path, content, got):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"other\.pth must be a state dict \(a mapping .*\), got {got}"):
        read(path)


def test_mappings_that_are_no_state_dict():
    with pytest.raises(ValueError, match=r"weights must be a state dict .* got 'conv1.weight': list"):
        read({"conv1.weight": [1.0]})
    with pytest.raises(ValueError, match=r"weights must be a state dict .* got 5: Tensor"):
        read({5: torch.zeros(1)})


@pytest.mark.parametrize(
    "wrong", [5, 1.5, True, [1], nn.Identity(), io.BytesIO(), b"weights.pth"], ids=lambda wrong: type(wrong).__name__
)
def test_wrong_types(wrong):
    with pytest.raises(TypeError, match=rf"weights must be a path, .*; got {type(wrong).__name__}"):
        read(wrong)


# torchvision: unknown names, no network, not installed.


@pytest.mark.parametrize(
    "name", ["IMAGENET1K_V9", "ResNet18_Weights.NOPE", "Foo_Weights.DEFAULT", "a.b.c", "weights.bin"]
)
def test_unknown_names(name, no_download):
    with pytest.raises(
        ValueError, match=rf"weights='{name}' is neither a file nor .* resnet18 \(IMAGENET1K_V1, DEFAULT\)"
    ):
        read(name)
    assert not no_download


def offline(*args, **kwargs):  # noqa: ARG001
    raise urllib.error.URLError("[Errno -2] Name or service not known")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr("urllib.request.urlopen", offline)


@pytest.mark.usefixtures("no_network")
def test_no_network():
    with pytest.raises(
        RuntimeError, match=r"could not be downloaded from https://.*Name or service not known"
    ) as error:
        read("IMAGENET1K_V1")
    assert "pass the path of a file as weights=" in str(error.value)
    assert isinstance(error.value.__cause__, urllib.error.URLError)


@pytest.mark.usefixtures("no_network")
def test_the_tutorial_model_without_a_network():
    with (
        torch.device("meta"),
        pytest.raises(RuntimeError, match=r"ResNet50_Weights\..* could not be downloaded") as error,
    ):
        ResNetWithAttention(SEBlock)
    assert "pretrained=False" in str(error.value)
    assert "path of a file" in str(error.value)


def test_the_tutorial_model_takes_torchvision_weights(monkeypatch):
    with torch.device("meta"):
        keys = torchvision.models.resnet50().state_dict()
    expected = {key: torch.full(value.shape, i + 1, dtype=value.dtype) for i, (key, value) in enumerate(keys.items())}
    asked = []

    def get_state_dict(self, **_):
        asked.append(self)
        return expected

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    model = ResNetWithAttention(SEBlock, pretrained=True)
    assert asked == [ResNet50_Weights.DEFAULT]
    assert_loaded(model.base_model, expected)


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "ResNet18_Weights.DEFAULT"])
def test_without_torchvision(monkeypatch, weights):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=r"which is not installed: pip install torchvision, or pass the path"):
        read(weights)
    with torch.device("meta"):
        with pytest.raises(ModuleNotFoundError, match=r"pip install torchvision"):
            ResNetWithAttention(SEBlock)
        ResNetWithAttention(SEBlock, pretrained=False)


def test_without_safetensors(monkeypatch, small, tmp_path):
    safetensors_torch.save_file(small, tmp_path / "weights.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs safetensors: pip install safetensors"):
        read(tmp_path / "weights.safetensors")
