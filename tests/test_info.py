"""``triton-attn info``: what it says is so, and it works with next to nothing installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from tests import fresh
from triton_attn import backend, cli, info


class Kernelled(triton_attn.reference.AttentionBlock):
    def forward(self, x: Tensor) -> Tensor:
        backend.use_triton(x)
        return x


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["info", *words]) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.split()[:1] == [name])


def test_versions_and_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    assert row(text, "triton_attn").split()[1] == triton_attn.__version__
    assert row(text, "torch").split()[1] == torch.__version__
    assert row(text, "Python").split()[1] == ".".join(map(str, sys.version_info[:3]))
    for name in triton_attn.list_attention("all"):
        form = "published." * name.startswith("published.") + type(triton_attn.create_attention(name, 32)).__name__
        assert row(text, name).split()[1] == (form if name != "published.se" else "SEBlock")
    assert "\n  auto (the default; TRITON_ATTN_BACKEND is not set)\n" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and blocks are tried on it")
@pytest.mark.parametrize(
    ("request_", "served", "reason"),
    [
        ("auto", "reference", "x is on cpu, not on a GPU"),
        ("reference", "reference", "asked for"),
        ("triton", "error", "a call raises BackendError: x is on cpu"),
        ("foo", "error", "unknown backend 'foo'"),
    ],
)
def test_the_backend_in_force(
    request_: str,
    served: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(backend.VARIABLE, request_)
    monkeypatch.setattr(backend, "_default", request_)  # which was read at the import
    report = json.loads(said(capsys, "--json"))
    assert report["backend"]["requested"] == ("invalid" if request_ == "foo" else request_)
    assert f"TRITON_ATTN_BACKEND{': ' if request_ == 'foo' else '='}" in report["backend"]["source"]
    assert report["backend"]["interpreter"] is False
    se = next(each for each in report["blocks"] if each["name"] == "se")
    assert (se["backend"], se["device"]) == (served, "cpu")
    assert reason in se["reason"]


def test_a_block_that_fails_is_told() -> None:
    class Broken(Kernelled):
        def forward(self, *_: Tensor) -> Tensor:
            raise RuntimeError("no C compiler\nand much more")

    assert info._served(Broken(), torch.device("cpu")) == ("error", "RuntimeError: no C compiler")


def test_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "\ndevices\n  no GPU\n" in said(capsys)
    gpu = SimpleNamespace(name="Some GPU", major=9, minor=0, total_memory=80 * 2**30, gcnArchName="gfx942")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.version, "hip", None)
    assert info.devices() == [
        {"index": i, "name": "Some GPU", "capability": "9.0", "memory_gib": 80.0} for i in range(2)
    ]
    assert info.test_device().type == "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert info.test_device().type == "cpu"
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(info, "test_device", lambda: torch.device("cpu"))
    assert "\n  1: Some GPU, compute capability 9.0, 80.0 GiB\n" in said(capsys)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert info.devices()[0]["capability"] == "gfx942"


def test_json_has_what_the_text_has(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(said(capsys, "--json"))
    text = said(capsys)
    assert list(report) == ["versions", "devices", "backend", "blocks"]
    assert [each["name"] for each in report["blocks"]] == triton_attn.list_attention("all")
    for name, version in report["versions"].items():
        assert version in row(text, name)
    for each in report["blocks"]:
        assert row(text, each["name"]).endswith(each["reason"])


def test_packages_that_are_not_there() -> None:
    assert info._version(["no-such-package-at-all"]) == "not installed"
    assert info._version(["no-such-package-at-all", "pytest"]) == pytest.__version__


def test_it_works_without_triton_and_the_extras() -> None:
    program = """
import importlib.machinery, importlib.metadata, sys
GONE = {"triton", "matplotlib", "safetensors", "torchvision", "sklearn", "PIL", "accelerate", "timm", "yaml", "tqdm"}

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in GONE else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
known = importlib.metadata.version
def version(name):
    if name in GONE:
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = version
from triton_attn import cli
status = cli.main(["info"])
status = status or 10 * (cli.main(["info", "nowhere.safetensors"]) != 2)
sys.exit(status)
"""
    done = fresh.python(program)
    for name in ("triton", "torchvision", "timm"):
        assert row(done.stdout, name).endswith("not installed")
    if not torch.cuda.is_available():
        assert row(done.stdout, "se").endswith("reference  Triton is not installed")
    assert "CHECKPOINT: nowhere.safetensors: no such file" in done.stderr


def test_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="the extra `train` is not installed")
    from triton_attn.train.checkpoint import Card, save_model

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    card = Card("resnet18", {"stem": "se", "layer1": "gate"}, (), {}, 3, ("a", "b", "ç"), 32, epoch=7, val_accuracy=0.9)
    model = card.build()
    save_model(tmp_path / "best.safetensors", model.state_dict(), card)
    text = said(capsys, str(tmp_path))
    attention = nn.ModuleDict(model.sites())
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, attention)]
    assert f"{sizes[0]:,}, of these {sizes[1]:,} in attention" in row(text, "parameters")
    assert row(text, "attention").endswith("se at stem, gate at layer1")
    assert row(text, "classes").endswith("3: a, b, ç")
    assert row(text, "trained").endswith("7 epochs, 90.00 % of held-out images right")
    assert "SEBlock" in row(text, "attention.stem")
    assert "AttentionGate" in row(text, "layer1.attention")
    report = json.loads(said(capsys, str(tmp_path), "--json"))["checkpoint"]
    assert (report["model"], report["attention_parameters"], len(report["sites"])) == ("resnet18", sizes[1], 2)


def test_a_checkpoint_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason="the extra `train` is not installed")
    (tmp_path / "text.safetensors").write_text("no weights")
    for path in (tmp_path / "text.safetensors", tmp_path, tmp_path / "nowhere"):
        assert cli.main(["info", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"CHECKPOINT: {path}: " in err
        assert err.count("\n") == 1
