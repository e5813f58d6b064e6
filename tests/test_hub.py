"""The layout for Hugging Face's ``kernels``; by their own tools where these are installed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hub import layout
from tests import fresh
from triton_attn import layers

timm = pytest.importorskip("timm")
ops = pytest.importorskip("torchvision").ops

PLAIN = {
    "SEModule": lambda: timm.layers.SEModule(16),
    "EffectiveSEModule": lambda: timm.layers.EffectiveSEModule(16, add_maxpool=True),
    "SqueezeExcite": lambda: timm.models._efficientnet_blocks.SqueezeExcite(16),
    "EcaModule": lambda: timm.layers.EcaModule(16),
    "SqueezeExcitation": lambda: ops.SqueezeExcitation(16, 4),
}
KNOWN = {
    name: each for name, each in vars(layers).items() if isinstance(each, type) and each.__module__ == layers.__name__
}


def test_every_layer_is_tested() -> None:
    assert set(KNOWN) == set(PLAIN)


@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_is_a_forward_alone(name: str) -> None:
    """What their loader asks of one: no constructor, no state, the parameters of the forward in whose place it is."""
    layer, plain = KNOWN[name], PLAIN[name]()
    assert layer.__init__ is nn.Module.__init__
    added = {key for key, _ in inspect.getmembers(layer)} - {key for key, _ in inspect.getmembers(nn.Module)}
    assert added == {"has_backward", "can_torch_compile"}
    ours, theirs = (list(inspect.signature(cls.forward).parameters.values()) for cls in (layer, type(plain)))
    assert [each.kind for each in ours] == [each.kind for each in theirs]
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(layer.forward(plain, x), plain(x))


@pytest.mark.interpreter
@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_by_the_kernels(name: str) -> None:
    from triton_attn import backend

    plain, x = PLAIN[name](), torch.randn(2, 16, 5, 7, requires_grad=True)
    with backend.listen() as heard:
        y = KNOWN[name].forward(plain, x)
    assert {choice.backend for choice in heard} == {"triton"}
    torch.testing.assert_close(y, plain(x))
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), x) for each in (y, plain(x))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hub") / "triton-attn"
    layout.lay_out(made, "someone/triton-attn", version=3, backends=("cuda", "cpu"))
    return made


def test_what_is_laid_out(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE",
        "build",
        "build.toml",
        "flake.nix",
        "torch-ext",
    ]
    assert sorted(path.name for path in (folder / "build").iterdir()) == ["torch-cpu", "torch-cuda"]
    variant = folder / "build" / "torch-cuda"
    for inside in ("layers.py", "reference/se.py", "kernels/squeeze.py", "fusion/adapters/timm.py"):
        assert (variant / inside).is_file()
        assert (folder / "torch-ext" / "triton_attn" / inside).is_file()
    for outside in ("train", "cli.py", "__pycache__"):
        assert not list(folder.rglob(outside))
    read = json.loads((variant / "metadata.json").read_text())
    assert read["backend"] == {"type": "cuda"}
    assert read["version"] == 3


def test_nothing_but_torch_is_imported_by_its_name(folder: Path) -> None:
    """A kernel may import PyTorch, Triton and itself, the last by relative names alone."""
    for path in (folder / "torch-ext").rglob("*.py"):
        assert "import triton_attn" not in path.read_text().replace('"""', "")


LOAD = """
import importlib.util, sys, torch, triton_attn
spec = importlib.util.spec_from_file_location("_its_own_name", sys.argv[1] + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
assert module.SEBlock is not triton_attn.SEBlock
x = torch.randn(1, 16, 3, 3)
with module.use_backend("triton"):
    module.SEBlock(16)(x)
triton_attn.SEBlock(16)(x)
print(any(name.startswith("_its_own_name.reference") for name in sys.modules), module.layers.SEModule.__name__)
"""


def test_it_is_loaded_beside_the_package_itself(folder: Path) -> None:
    done = fresh.python(LOAD, str(folder / "build" / "torch-cpu"), cwd=layout.ROOT, TRITON_INTERPRET="1")
    assert done.stdout.split() == ["True", "SEModule"]


def test_it_is_written_over_its_own_kind_alone(folder: Path, tmp_path: Path) -> None:
    before = sorted(folder.rglob("*"))
    layout.lay_out(folder, "someone/triton-attn", version=3, backends=("cuda", "cpu"))
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == [
        path for path in before if "__pycache__" not in path.parts
    ]
    (tmp_path / "mine").write_text("")
    with pytest.raises(FileExistsError, match="holds something else"):
        layout.lay_out(tmp_path, "someone/triton-attn")
    with pytest.raises(ValueError, match=r"repository must be owner/name, got 'triton-attn'"):
        layout.lay_out(tmp_path, "triton-attn")


def test_their_builder_reads_it(folder: Path) -> None:
    # Not `kernels` itself, which a folder of tests is called, too.
    read = pytest.importorskip("kernels._rust").Build.open(folder)
    assert sorted(str(each).lower() for each in read.general.backends) == ["cpu", "cuda"]


def test_their_loader_takes_the_layers(folder: Path) -> None:
    theirs = pytest.importorskip("kernels.layer.layer")
    repository = theirs.LocalLayerRepository(folder, layer_name="SEModule")
    layer = repository.load()
    theirs._validate_layer(check_cls=timm.layers.SEModule, cls=layer, repo=repository)
    plain, x = timm.layers.SEModule(16), torch.randn(1, 16, 3, 3)
    torch.testing.assert_close(layer.forward(plain, x), plain(x))
