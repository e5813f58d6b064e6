"""The search for a config: by time, and only among those that change no bit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import triton_attn
from triton_attn.ops import launch
from triton_attn.ops.launch import Launch
from triton_attn.tuning import search as searching
from triton_attn.tuning import spaces
from triton_attn.tuning.search import search, time_all

pytestmark = pytest.mark.interpreter


@pytest.fixture
def given() -> Launch:
    """ECA's gating multiply, its output not yet written."""
    seen: list[Launch] = []
    x = torch.randn(2, 24, 9, 7).contiguous(memory_format=torch.channels_last)
    with launch.watch(seen.append), torch.no_grad():
        triton_attn.ECABlock(24)(x)
    (found,) = (each for each in seen if each.kernel.fn.__name__ == "apply_gate_fwd_kernel")
    found.arguments["y_ptr"].fill_(math.nan)
    return found


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Any) -> None:
    monkeypatch.setattr(searching, "time_all", lambda _, configs: [(each, seconds(each)) for each in configs])


def test_the_fastest_is_found(given: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda config: 1.0 / config["SPAN"] + 1e-6 * config["BLOCK_P"])
    found = search(given)
    tried = [config for config, _ in found.timings]
    assert tried == spaces.configs(spaces.space_of(given.kernel), given.rule)
    assert found.config == min(tried, key=lambda config: (-config["SPAN"], config["BLOCK_P"]))
    assert found.rule == given.rule
    assert found.seconds < found.rule_seconds
    assert found.rejected == []


def test_what_is_hardly_faster_does_not_take_the_rules_place(given: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda config: 1.0 if config == given.rule else 0.985)
    assert search(given).config == given.rule


def test_other_bits_are_rejected_however_fast(given: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    widest = max(config["SPAN"] for config in spaces.configs(spaces.space_of(given.kernel), given.rule))
    timed(monkeypatch, lambda config: 1.0 if config == given.rule else 0.5 / config["SPAN"])
    # With the widest span most of the map is not written.
    lazy = replace(given, grid=lambda config: (1,) if config["SPAN"] == widest else given.grid(config))
    found = search(lazy)
    assert {config["SPAN"] for config in found.rejected} == {widest}
    assert found.config["SPAN"] == widest // 2


def test_configs_that_do_not_run_are_passed_over(given: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda config: 1.0 if config == given.rule else math.inf)
    assert search(given).config == given.rule
    timed(monkeypatch, lambda _: math.inf)
    with pytest.raises(RuntimeError, match=r"apply_gate_fwd_kernel: the rule's config .* does not run"):
        search(given)


def test_tritons_autotuner_times_every_config(given: Launch) -> None:
    configs = spaces.configs(spaces.space_of(given.kernel), given.rule)[:3]
    timings = time_all(given, configs)
    assert [config for config, _ in timings] == configs
    assert all(0 < seconds < 10 for _, seconds in timings)
    # A single one, too.
    assert [config for config, _ in time_all(given, configs[:1])] == configs[:1]
