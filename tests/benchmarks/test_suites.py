"""The suites: cases, the same weights and inputs for all, and each result checked before it is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import triton_attn
from benchmarks.counted.graphs import Graphs
from benchmarks.timed import bench_blocks, bench_models, bench_nonlocal, cases
from benchmarks.timed.bench_blocks import OWN_FORMULA, TIMM
from benchmarks.timed.bench_models import build, taxes
from benchmarks.timed.cases import BACKWARD, FORWARD, INFERENCE, SUITES, TRAINING, AttentionCase, BlockCase, NetworkCase
from benchmarks.timed.clocks import CpuClock, measure_launches
from benchmarks.timed.formulas import FORMULAS
from benchmarks.timed.turns import WrongResult, check
from triton_attn.reference import resnet
from triton_attn.reference.non_local import attend_explicit
from triton_attn.reference.registry import BLOCKS as PLAIN

BLOCK = BlockCase("se", "tiny", (3, 32, 7, 7), "float32", "channels_last", TRAINING)
NETWORK = NetworkCase("resnet18", "se", "block", 2, 32, "float32", "channels_last", TRAINING)
ATTENTION = AttentionCase("stem", 16, 2, "float32", FORWARD)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for suite in (bench_blocks, bench_models, bench_nonlocal):
        monkeypatch.setattr(suite, "on_gpu", lambda: True)


@pytest.mark.parametrize(
    ("suite", "goal", "first"),
    [
        ("blocks", 8 * 5 * 3, "se-layer1-64x256x56x56-bfloat16-channels_last-training"),
        ("calls", 8 * 2 * 2 * 2, "se-layer1-16x256x56x56-bfloat16-channels_last-training"),
        ("nonlocal", 5 * 5 * 2, "layer1-224-batch64-bfloat16-forward"),
        ("models", 8 * 2 * 2 * 2, "resnet50-se-block-64x224-bfloat16-channels_last-training"),
    ],
)
def test_what_the_claims_are_about_comes_first(suite: str, goal: int, first: str) -> None:
    found = {size: list(map(str, SUITES[suite](size))) for size in ("tiny", "small", "goal")}
    assert all(len(each) == len(set(each)) for each in found.values())
    assert (len(found["goal"]), found["goal"][0]) == (goal, first)
    assert found["tiny"]
    assert bool(found["small"]) == (suite in ("blocks", "nonlocal", "models"))  # a CPU's


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_everybody_takes_part() -> None:
    assert [*bench_blocks.providers(replace(BLOCK, direction=FORWARD))] == ["ours", "eager", "compile", "timm", "copy"]
    assert [*bench_blocks.providers(replace(BLOCK, block="gate", direction=BACKWARD))] == ["ours", "eager", "compile"]
    of_se = next(iter(cases.models("goal")))
    found = {*bench_models.providers(of_se), *bench_models.providers(replace(of_se, compiled=True))}
    assert found == {*bench_models.PLAIN_OF, *bench_models.PLAIN_OF.values()} - {"formula"}
    assert [*bench_nonlocal.providers()] == [*bench_nonlocal.PROVIDERS]
    assert [name for name in bench_nonlocal.PROVIDERS if bench_nonlocal.wants_one_width(name)] == ["sdpa-flash"]


@pytest.mark.parametrize("name", triton_attn.list_attention())
def test_the_tutorials_formula_is_the_blocks(name: str) -> None:
    torch.manual_seed(0)
    plain, formula = PLAIN[name](32).double(), FORMULAS[name](32).double()
    formula.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, 6, 5, dtype=torch.float64, requires_grad=True)
    x.data[0, 0, :2, :2] = 9.0  # a tie
    results = []
    for block in (plain, formula):
        y = block(x)
        results.append([y, *torch.autograd.grad(y, [x, *block.parameters()], torch.ones_like(x))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("block", ["se", "eca", "cbam"])
def test_providers_compute_the_same(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = Mock(wraps=check)
    monkeypatch.setattr(bench_blocks, "check", checked)
    makers = bench_blocks.prepare(replace(BLOCK, block=block)).makers
    for provider in ("ours", "formula", TIMM[block]):
        y, *_ = makers[provider]()()
        assert y.is_contiguous(memory_format=torch.channels_last) or provider == "timm"
    assert checked.call_count == (2 if block == "cbam" else 3)  # timm's CBAM is another
    if block == "cbam":
        monkeypatch.setattr(bench_blocks, "OWN_FORMULA", None)
        with pytest.raises(WrongResult, match="is off by"):
            makers[OWN_FORMULA]()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda y, dx: (y * 1.001, dx), "the output is off by"),
        (lambda y, dx: (y, dx + 1e-3), "the gradient is off by"),
        (lambda y, dx: (y.double(), dx), "the output is .* torch.float64"),
        (lambda y, dx: (y[:2], dx), "the output is "),
        (lambda y, dx: (y / 0, dx), "the output is off by nan"),
    ],
)
def test_a_wrong_result_is_not_timed(spoil: Any, message: str) -> None:
    exact = [torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4) for _ in range(2)]
    plain = [t.float() for t in exact]
    check(plain, plain, [t[:2] for t in exact])
    with pytest.raises(WrongResult, match=message):
        check(spoil(*plain), plain, [t[:2] for t in exact])


def test_the_backward_by_itself() -> None:
    ways = (replace(BLOCK, direction=way) for way in (TRAINING, BACKWARD))
    both, backward = (bench_blocks.prepare(case).makers["ours"]() for case in ways)
    for _ in range(2):  # of a graph that is kept
        assert all(torch.equal(*pair) for pair in zip(both(), backward(), strict=True))


@pytest.mark.interpreter
def test_launches_over_the_map() -> None:
    block, x = triton_attn.SEBlock(32).requires_grad_(False), torch.randn(2, 32, 7, 7)
    launches = measure_launches(lambda: block(x), CpuClock(), 3, lambda t: 2 * t.numel() >= x.numel())
    assert [moved for _, moved, _ in launches if moved] == [x.nbytes, 2 * x.nbytes]
    assert all(len(seconds) == 3 and min(seconds) > 0 for *_, seconds in launches)


def test_networks_have_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = triton_attn.resnet18("se", where="block").state_dict()
    plain = build(NETWORK, "plain", state)
    assert all(torch.equal(t, state[name]) for name, t in plain.state_dict().items())
    # A network's statistics are its own.
    model = build(NETWORK, "ours", state)
    model(torch.randn(2, 3, 32, 32))
    assert torch.equal(build(NETWORK, "ours", state).bn1.running_mean, state["bn1.running_mean"])
    assert not torch.equal(model.bn1.running_mean, state["bn1.running_mean"])

    def spoiled(case: NetworkCase, provider: str, state: dict[str, Tensor]) -> Any:
        model = build(case, provider, state)
        if provider == "ours":
            model.fc.weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(bench_models, "build", spoiled)
    makers = bench_models.prepare(NETWORK).makers
    loss, *gradients = makers["formula"]()()
    assert (loss.shape, len(gradients)) == ((), len(list(plain.parameters())) + 4 * 8)
    with pytest.raises(WrongResult, match="is off by"):
        makers["ours"]()


def test_timms_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.layers import EcaModule, SEModule
    from timm.layers.cbam import CbamModule

    monkeypatch.setattr(bench_models, "device", lambda: torch.device("meta"))
    for name, kind in (("se", SEModule), ("eca", EcaModule), ("cbam", CbamModule)):
        case = replace(NETWORK, network="resnet50", attention=name)
        with torch.device("meta"):
            with_attention, without = build(case, "timm", {}), build(case, "timm-plain", {})
        assert sum(isinstance(each, kind) for each in with_attention.modules()) == 16
        assert not any(isinstance(each, kind) for each in without.modules())


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
    block, _ = resnet.ARCHITECTURES["resnet18"]
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", (block, (1, 1, 1, 1)))
    makers = bench_models.prepare(replace(NETWORK, compiled=True, mode=INFERENCE)).makers
    for make in makers.values():
        torch.compiler.reset()
        assert [y.shape for y in make()()] == [(2, 1000)]
    torch.compiler.reset()
    with triton_attn.use_backend("reference"), pytest.raises(ValueError, match="of 4 blocks 0 were compiled with an"):
        makers["ours-compile"]()


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD, TRAINING])
def test_attention_gets_its_zeros_before_the_timing_and_is_checked(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = bench_nonlocal.prepare(replace(ATTENTION, direction=direction)).makers
    ours, sdpa = makers["ours"](), makers["sdpa"]()
    monkeypatch.setattr(F, "pad", None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y, *gradients = sdpa()
    if direction == FORWARD:  # nor is there a matrix
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in {event.key for event in profile.key_averages()}
    expected, *own = ours()
    torch.testing.assert_close(y, expected)
    for wide, narrow in zip(gradients, own, strict=True):
        assert wide.shape[-1] == cases.WIDTHS["stem"][1]
        torch.testing.assert_close(wide[..., : narrow.shape[-1]], narrow)
    monkeypatch.setitem(bench_nonlocal.PROVIDERS, "eager", lambda: lambda q, k, v: 1.01 * attend_explicit(q, k, v))
    with pytest.raises(WrongResult, match="the output is off by"):
        makers["eager"]()


@pytest.mark.usefixtures("gpu")
def test_flex_attention_is_tried_with_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def flex(**options: int) -> Any:
        tried.append(options)
        fits = options.get("BLOCK_M") == 32
        return attend_explicit if fits else Mock(side_effect=RuntimeError("OutOfResources: shared memory"))

    monkeypatch.setitem(bench_nonlocal.PROVIDERS, "flex", flex)
    bench_nonlocal.prepare(ATTENTION).makers["flex"]()
    assert tried == bench_nonlocal.FLEX_OPTIONS[:3]
    monkeypatch.setitem(bench_nonlocal.PROVIDERS, "flex", lambda **_: lambda q, _, v: q @ v)
    with pytest.raises(RuntimeError):  # by the last
        bench_nonlocal.prepare(ATTENTION).makers["flex"]()
