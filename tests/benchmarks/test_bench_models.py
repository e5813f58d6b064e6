"""The suite of networks: the same weights for all, and each against the plain network of its own kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import triton_attn
from benchmarks import bench_models
from benchmarks.bench_models import (
    GOAL,
    INFERENCE,
    PLAIN_OF,
    TRAINING,
    WHERE,
    Case,
    build,
    cases,
    check,
    prepare,
    taxes,
)
from benchmarks.counted.graphs import Graphs

CASE = Case("resnet18", "se", "block", 2, 32, "float32", "channels_last", TRAINING)


def test_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    small = list(cases("small"))
    assert {(case.attention, case.where) for case in small} == {
        (name, where) for name in triton_attn.list_attention() for where in WHERE
    }
    goal = [str(case) for case in cases("goal")]
    assert len(goal) == len(set(goal)) == 8 * 2 * 2 * 2
    assert goal[:2] == [
        "resnet50-se-block-64x224-bfloat16-channels_last-training",
        "resnet50-se-block-64x224-bfloat16-channels_last-inference",
    ]
    first_compiled = next(i for i, name in enumerate(goal) if name.endswith("compiled"))
    assert first_compiled == 2 * len(GOAL)
    assert set(goal) <= {str(case) for case in cases("full")}
    monkeypatch.setattr(bench_models, "on_gpu", lambda: True)
    of_se = next(cases("goal"))
    found = {*bench_models.providers(of_se), *bench_models.providers(replace(of_se, compiled=True))}
    assert found == {*PLAIN_OF, *PLAIN_OF.values()} - {"formula"}


def test_networks_have_the_same_weights() -> None:
    torch.manual_seed(0)
    state = triton_attn.resnet18("se", where="block").state_dict()
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = build(CASE, "eager", state).eval()(images)
    for provider in ("ours", "formula"):
        model = build(CASE, provider, state)
        check(model, images, expected)
        assert model.training
    plain = build(CASE, "plain", state)
    for name, t in plain.state_dict().items():
        assert torch.equal(t, state[name])
    # A network's statistics are its own.
    model = build(CASE, "ours", state)
    model(images)
    assert torch.equal(build(CASE, "ours", state).bn1.running_mean, state["bn1.running_mean"])
    assert not torch.equal(model.bn1.running_mean, state["bn1.running_mean"])
    with torch.no_grad():
        model.fc.weight.mul_(1.01)
    with pytest.raises(ValueError, match="the logits are off by"):
        check(model, images, expected)


@pytest.mark.parametrize("mode", [TRAINING, INFERENCE])
def test_what_is_timed(mode: str) -> None:
    case = replace(CASE, mode=mode)
    run = prepare(case, ["ours"]).makers["ours"]()
    result = run()
    assert result.requires_grad == (mode == TRAINING)
    assert result.shape == (() if mode == TRAINING else (2, 1000))


def test_timms_networks() -> None:
    from timm.layers import EcaModule, SEModule
    from timm.layers.cbam import CbamModule

    for name, kind in (("se", SEModule), ("eca", EcaModule), ("cbam", CbamModule)):
        case = replace(CASE, network="resnet50", attention=name)
        assert sum(isinstance(each, kind) for each in build(case, "timm", {}).modules()) == 16
        assert not any(isinstance(each, kind) for each in build(case, "timm-plain", {}).modules())


def test_a_tax_is_against_the_like() -> None:
    seconds = {"plain": 100, "ours": 104, "plain-compile": 50, "compile": 60, "timm-plain": 90, "timm": 108}
    # The machine is ten times slower in the second round, for all.
    paid = taxes({who: [float(each), 10.0 * each] for who, each in seconds.items()})
    assert {who: each["median"] for who, each in paid.items()} == pytest.approx(
        {"ours": 0.04, "compile": 0.2, "timm": 0.2}
    )


@pytest.mark.interpreter
def test_a_compiled_network_is_timed_with_our_ops_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graphs, "compiler", "eager")
    case = replace(CASE, compiled=True, mode=INFERENCE)
    makers = prepare(case, ["plain-compile", "ours-compile", "compile"]).makers
    for make in makers.values():
        torch.compiler.reset()
        assert make()().shape == (2, 1000)
    torch.compiler.reset()
    with triton_attn.use_backend("reference"), pytest.raises(ValueError, match="of 8 blocks 0 were compiled with an"):
        makers["ours-compile"]()
