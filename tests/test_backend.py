"""Which backend serves a tensor."""

from __future__ import annotations

import pytest
import torch

import triton_attn
from triton_attn import backend, reference


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
    monkeypatch.setenv("TRITON_ATTN_BACKEND", "triton")
    with pytest.raises(triton_attn.BackendError):
        backend.use_triton(torch.randn(1, 2, 3, 4))
    with triton_attn.use_backend("auto"):
        assert not backend.use_triton(torch.randn(1, 2, 3, 4))
    monkeypatch.setenv("TRITON_ATTN_BACKEND", "cuda")
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
def test_an_exporter_gets_plain_operators() -> None:
    block, x = triton_attn.SEBlock(8, 2).eval(), torch.randn(1, 8, 3, 3)
    exported = torch.export.export(block, (x,))
    assert not any("triton_attn" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), reference.SEBlock.forward(block, x))
    traced = torch.jit.trace(block, x)
    assert "triton_attn::" not in str(traced.graph)


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
