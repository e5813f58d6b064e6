"""The suite of non-local attention: its rivals at their best, each result checked, and the most wanted cases first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import bench_nonlocal
from benchmarks.bench_nonlocal import (
    BACKWARD,
    FLEX_OPTIONS,
    FORWARD,
    PROVIDERS,
    TRAINING,
    Case,
    cases,
    prepare,
    providers,
    wants_one_width,
)
from benchmarks.suite import Session
from triton_attn.reference.non_local import attend_explicit

CASE = Case("stem", 16, 2, "float32", FORWARD)
WIDTH, VALUE_WIDTH = bench_nonlocal.WIDTHS["stem"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_nonlocal, "on_gpu", lambda: True)


def use(monkeypatch: pytest.MonkeyPatch, name: str, attend: Any) -> None:
    monkeypatch.setitem(PROVIDERS, name, lambda: attend)


def test_a_first_call_gets_the_most_wanted() -> None:
    goal = list(cases("goal"))
    assert [str(case).replace("-bfloat16", "") for case in goal[:11]] == [
        "layer1-224-batch64-forward",
        "layer1-224-batch64-backward",
        "stem-224-batch64-forward",
        "layer3-224-batch64-forward",
        "layer3-224-batch64-backward",
        *(f"stem-{image}-batch1-{way}" for image in (224, 512, 1024) for way in ("forward", "backward")),
    ]
    maps = {(64, 224), (16, 224), (1, 224), (1, 512), (1, 1024)}
    assert {(case.batch, case.image) for case in goal} == maps
    assert len(set(goal)) == len(goal) == len(maps) * len(bench_nonlocal.WIDTHS) * 2
    full = list(cases("full"))
    assert set(goal) < set(full)
    assert len(set(full)) == len(full) == len(maps) * len(bench_nonlocal.WIDTHS) * 2 * 3


@pytest.mark.usefixtures("gpu")
def test_everybody_takes_part_but_where_matrices_would_fill_the_gpu() -> None:
    large = Case("stem", 224, 64, "bfloat16", BACKWARD)
    for case in cases("goal"):
        assert {*PROVIDERS} - {*providers(case)} == ({"eager", "compile"} if case == large else set())
    assert "compile" not in providers(replace(large, direction=TRAINING))


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD, TRAINING])
def test_zeros_are_put_in_before_the_timing(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    makers = prepare(replace(CASE, direction=direction), ["ours", "sdpa"]).makers
    ours, sdpa = makers["ours"](), makers["sdpa"]()
    monkeypatch.setattr(F, "pad", None)
    y, *gradients = sdpa()
    expected, *own = ours()
    torch.testing.assert_close(y, expected)
    if direction != FORWARD:
        assert [t.shape[-1] for t in own] == [WIDTH, WIDTH, VALUE_WIDTH]
        assert {t.shape[-1] for t in gradients} == {VALUE_WIDTH}
        for wide, narrow in zip(gradients, own, strict=True):
            torch.testing.assert_close(wide[..., : narrow.shape[-1]], narrow)


def test_sdpa_on_a_cpu_builds_no_matrix() -> None:
    run = prepare(CASE, ["sdpa"]).makers["sdpa"]()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    started = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in started
    assert "aten::constant_pad_nd" not in started


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_flash_alone_gets_zeros() -> None:
    assert [name for name in PROVIDERS if wants_one_width(name)] == ["sdpa-flash"]


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD, TRAINING])
def test_the_output_of_what_is_timed_is_checked(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, direction=direction)
    use(monkeypatch, "eager", lambda q, k, v: 1.01 * attend_explicit(q, k, v))
    with pytest.raises(ValueError, match="the result is off by"):
        prepare(case, ["eager"]).makers["eager"]()

    # For the check nothing runs as it is not timed: what is compiled would be compiled once more.
    modes: Counter[bool] = Counter()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        modes[torch.is_grad_enabled()] += 1
        return attend_explicit(q, k, v)

    use(monkeypatch, "eager", attend)
    run = prepare(case, ["eager"]).makers["eager"]()
    run()
    assert modes == {FORWARD: {False: 2}, BACKWARD: {True: 1}, TRAINING: {True: 2}}[direction]


class Shared(torch.autograd.Function):
    """Attention whose backward has no room."""

    @staticmethod
    def forward(_: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(_: Any, _grad: Tensor) -> Tensor:
        raise RuntimeError("OutOfResources: shared memory\nand more")


def flex_with_room_for(side: int) -> Any:
    def flex(**options: int) -> Any:
        fits = options.get("BLOCK_M1", 128) <= side
        return attend_explicit if fits else lambda q, k, v: Shared.apply(attend_explicit(q, k, v))

    return flex


def test_flex_attention_is_tried_with_smaller_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [options.get("BLOCK_M") for options in FLEX_OPTIONS] == [None, 64, 32, 16]
    case = replace(CASE, direction=BACKWARD)
    for side, expected in ((128, {}), (32, FLEX_OPTIONS[2]), (16, FLEX_OPTIONS[3])):
        monkeypatch.setitem(PROVIDERS, "flex", flex_with_room_for(side))
        session = Session("nonlocal", prepare, tmp_path / str(side), rounds=2)
        record, samples = session.samples_of(case, ["ours", "flex"])
        assert list(samples) == ["ours", "flex"]
        assert record["flex_options"] == expected
    monkeypatch.setitem(PROVIDERS, "flex", flex_with_room_for(8))
    record, samples = Session("nonlocal", prepare, tmp_path, rounds=2).samples_of(case, ["ours", "flex"])
    assert list(samples) == ["ours"]
    assert record["not_timed"] == {"flex": "RuntimeError: OutOfResources: shared memory"}
    assert "flex_options" not in record

    # A forward needs no backward's room.
    record, samples = Session("nonlocal", prepare, tmp_path, rounds=2).samples_of(CASE, ["flex"])
    assert record["flex_options"] == {}


def test_options_are_those_of_flex_attention() -> None:
    from torch.nn.attention.flex_attention import FlexKernelOptions

    assert {name for options in FLEX_OPTIONS for name in options} <= set(FlexKernelOptions.__annotations__)
