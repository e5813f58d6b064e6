"""Which backend serves a tensor."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import pytest
import torch

import triton_attn
from benchmarks.counted.graphs import Graphs
from triton_attn import backend
from triton_attn.reference.registry import BLOCKS as PLAIN
from triton_attn.registry import BLOCKS


def reason(x: torch.Tensor) -> backend.Choice:
    with backend.listen() as heard:
        backend.use_triton(x)
    return heard[-1]


def test_a_cpu_tensor_is_served_by_the_reference() -> None:
    assert not backend.use_triton(torch.randn(1, 2, 3, 4))
    choice = reason(torch.randn(1, 2, 3, 4))
    assert choice.backend == "reference"
    assert "cpu" in choice.reason


def test_asking_for_triton_where_it_cannot_serve_is_an_error() -> None:
    block, x = triton_attn.SEBlock(8, 2), torch.randn(1, 8, 3, 3)
    with triton_attn.use_backend("triton"), pytest.raises(triton_attn.BackendError, match="x is on cpu"):
        block(x)
    block(x)


def test_contexts_nest_and_end() -> None:
    assert backend.requested_backend() == "auto"
    with triton_attn.use_backend("reference"):
        with triton_attn.use_backend("triton"):
            assert backend.requested_backend() == "triton"
        assert backend.requested_backend() == "reference"
    with pytest.raises(KeyError), triton_attn.use_backend("triton"):
        raise KeyError
    assert backend.requested_backend() == "auto"


def test_the_environment_sets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_default", "triton")
    with pytest.raises(triton_attn.BackendError):
        backend.use_triton(torch.randn(1, 2, 3, 4))
    with triton_attn.use_backend("auto"):
        assert not backend.use_triton(torch.randn(1, 2, 3, 4))
    monkeypatch.setattr(backend, "_default", "cuda")
    with pytest.raises(ValueError, match=r"TRITON_ATTN_BACKEND: unknown backend 'cuda', expected one of auto"):
        backend.use_triton(torch.randn(1, 2, 3, 4))


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"use_backend: unknown backend 'tritn'"), triton_attn.use_backend("tritn"):
        pass
    assert backend.requested_backend() == "auto"


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.randn(1, 2, 3, 4)
    assert reason(x).backend == "triton"
    assert reason(x.half()).backend == "triton"
    assert "float64" in reason(x.double()).reason
    assert "interpreter serves CPU tensors" in reason(x.to("meta")).reason
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
    assert reason(x).reason == "Triton is not installed"


@pytest.mark.interpreter
@pytest.mark.parametrize(("name", "strict"), [*((name, False) for name in triton_attn.list_attention()), ("se", True)])
def test_export_gets_plain_operators(name: str, strict: bool) -> None:
    torch.compiler.reset()
    block, x = triton_attn.create_attention(name, 16).eval(), torch.randn(1, 16, 3, 3)
    exported = torch.export.export(block, (x,), strict=strict)
    assert not any("triton_attn" in str(node.target) for node in exported.graph.nodes)
    with triton_attn.use_backend("reference"):
        torch.testing.assert_close(exported.module()(x), block(x))


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of every look at a shape
def test_tracing_gets_plain_operators() -> None:
    block, x = triton_attn.SEBlock(8, 2).eval(), torch.randn(1, 8, 3, 3)
    assert "triton_attn::" not in str(torch.jit.trace(block, x).graph)


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True], ids=["tracing", "exporting"])
def test_onnx_gets_plain_operators(dynamo: bool, tmp_path: Path) -> None:
    """Both of its exporters; without its packages the older one fails at the end, and the other at once."""
    if dynamo:
        pytest.importorskip("onnxscript")
    block, x = triton_attn.SEBlock(8, 2).eval(), torch.randn(1, 8, 3, 3)
    complete = importlib.util.find_spec("onnx") is not None
    expected = contextlib.nullcontext() if complete else pytest.raises(torch.onnx.OnnxExporterError)
    with backend.listen() as heard, expected:
        torch.onnx.export(block, (x,), tmp_path / "block.onnx", dynamo=dynamo)
    assert {choice.backend for choice in heard} == {"reference"}
    assert "exporter" in heard[0].reason


@pytest.mark.interpreter
def test_a_compiler_is_no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on PyTorch 2.11, whose compiler takes ``is_exporting`` to be true."""
    torch.compiler.reset()
    x = torch.randn(1, 8, 3, 3)
    torch.compile(lambda t: -t, backend="eager")(x)  # from now on the compiler knows the function of that name
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: torch.compiler.is_dynamo_compiling())
    graphs = Graphs("aot_eager")
    torch.compile(triton_attn.SEBlock(8, 2), backend=graphs, fullgraph=True)(x)
    assert graphs.all_served()


@pytest.mark.interpreter
def test_what_is_compiled_goes_by_the_choice_too() -> None:
    torch.compiler.reset()
    graphs = Graphs("aot_eager")
    block, x = torch.compile(triton_attn.SEBlock(8, 2), backend=graphs, fullgraph=True), torch.randn(1, 8, 3, 3)
    for name in ("auto", "reference", "triton", "auto"):
        with triton_attn.use_backend(name):
            block(x)
    assert [bool(ops) for ops in graphs.ops] == [True, False, True]


@pytest.mark.interpreter
def test_torch_func_and_forward_mode_get_plain_operators() -> None:
    torch.manual_seed(0)
    block, x = triton_attn.SEBlock(8, 2), torch.randn(1, 8, 3, 3)
    parameters = dict(block.named_parameters())

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(block, parameters, (x,)).sum()

    grads = torch.func.grad(loss)(parameters)
    for ours, right in zip(grads.values(), torch.autograd.grad(loss(parameters), parameters.values()), strict=True):
        torch.testing.assert_close(ours, right)
    _, tangent = torch.func.jvp(block, (x,), (x,))
    assert tangent.shape == x.shape
    assert "torch.func" in reason_within_func(x)
    assert reason(x).backend == "triton"


TRANSFORMED = {
    "vmap": lambda f: lambda x: torch.func.vmap(lambda t: f(t))(x.unflatten(0, (2, 1))),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum()),
    "jvp": lambda f: lambda x: torch.func.jvp(lambda t: f(t), (x,), (x,)),
    "grad by parameters": lambda f: (
        lambda x: torch.func.grad(lambda parameters: torch.func.functional_call(f, parameters, (x,)).sum())(
            dict(f.named_parameters())
        )
    ),
    "grad by image": lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x[None]).sum())),
}


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore")  # forward mode scripts its formulas, which is deprecated
@pytest.mark.parametrize(
    ("name", "transform"),
    [
        *(("se", each) for each in TRANSFORMED),
        *((each, "vmap") for each in triton_attn.list_attention() if each != "se"),
    ],
)
def test_compiled_transforms_get_plain_operators(name: str, transform: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    block, x = triton_attn.create_attention(name, 16), torch.randn(2, 16, 3, 3)
    with triton_attn.use_backend("reference"):
        right = TRANSFORMED[transform](block)(x)
    graphs = Graphs("aot_eager")
    # The block by itself, in the same graph, is served all the same.
    ours, itself = torch.compile(lambda x: (TRANSFORMED[transform](block)(x), block(x)), backend=graphs)(x)
    torch.testing.assert_close(ours, right)
    torch.testing.assert_close(itself, block(x))
    assert sum(map(len, graphs.ops)) == 1


def reason_within_func(x: torch.Tensor) -> str:
    heard = []

    def ask(t: torch.Tensor) -> torch.Tensor:
        heard.append(reason(t).reason)
        return t.sum()

    torch.func.grad(ask)(x)
    return heard[0]


@pytest.mark.parametrize(("capability", "served"), [((7, 0), False), ((7, 5), True), ((9, 0), True)])
def test_old_gpus_are_not_served(capability: tuple[int, int], served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    obstacle = backend._gpu_obstacle(torch.device("cuda:0"))
    assert (obstacle is None) == served
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert backend._gpu_obstacle(torch.device("cuda:0")) is None


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_on_a_cpu_a_parametrised_layer_is_asked_as_often_as_by_the_twin(name: str) -> None:
    """A spectral norm in training takes a step whenever its weight is looked at."""
    x = torch.randn(2, 32, 5, 3)
    found = []
    for blocks in (BLOCKS, PLAIN):
        torch.manual_seed(0)
        block = blocks[name](32)
        for layer in [each for each in block.modules() if isinstance(each, (torch.nn.Linear, torch.nn.Conv2d))]:
            torch.nn.utils.parametrizations.spectral_norm(layer)
        for _ in range(3):
            y = block(x)
        found.append(y)
    assert torch.equal(*found)
