"""The search for a config: by time, and only among those that change no bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
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
    def time_all(given: Launch, configs: list[spaces.Config]) -> list[tuple[spaces.Config, float]]:
        given.run(given.rule)  # tensors hold a result when all are timed
        return [(each, seconds(each)) for each in configs]

    monkeypatch.setattr(searching, "time_all", time_all)


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
    assert all(0 < seconds < math.inf for _, seconds in timings)
    # A single one, too.
    assert [config for config, _ in time_all(given, configs[:1])] == configs[:1]


class Gpu:
    """A GPU whose time goes on by what it is given to do, in milliseconds; 20 µs for a launch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asleep, self.takes, self.log = 0.0, 1.0, [0.02], list[str]()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=2**27))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda _: self.work("sleep", self.asleep))
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(searching, "time", SimpleNamespace(perf_counter=lambda: self.now / 1e3))
        self.clock = searching._GpuClock(torch.device("meta"))
        assert self.clock.larger_than_cache.nbytes == 2**29
        self.clock.larger_than_cache = SimpleNamespace(zero_=lambda: self.work("clear", 0.09))

    def work(self, what: str, milliseconds: float) -> None:
        self.log.append(what)
        self.now += milliseconds

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=math.nan, synchronize=lambda: self.log.append("wait"))

        def record() -> None:
            self.log.append("stamp")
            event.at = self.now

        event.record = record
        event.elapsed_time = lambda last: last.at - event.at
        return event

    def launch(self) -> None:
        self.work("launch", self.takes[self.log.count("launch") % len(self.takes)])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_on_a_gpu_a_launch_is_timed_alone(gpu: Gpu) -> None:
    gpu.takes = [0.02, 0.05, 0.03]
    assert gpu.clock(gpu.launch, quantiles=(0.5, 0.2, 0.8)) == pytest.approx([0.03] * 3)
    assert gpu.log[0] == "launch"  # which compiles
    runs = len(gpu.log) // 6
    assert gpu.log[1:] == ["sleep", "clear", "stamp", "launch", "stamp", "wait"] * runs


@pytest.mark.parametrize(("asleep", "takes", "runs"), [(1.0, 0.02, 46), (1.0, 40.0, 5), (0.1, 0.02, 100)])
def test_as_many_runs_as_the_time_allows(gpu: Gpu, asleep: float, takes: float, runs: int) -> None:
    gpu.asleep, gpu.takes = asleep, [takes]
    assert gpu.clock(gpu.launch, quantiles=(0.5,)) == pytest.approx([takes])
    assert gpu.log.count("launch") == 1 + gpu.clock.WARM_UP + runs


def out_of_resources() -> Exception:
    from triton.runtime.errors import OutOfResources

    return OutOfResources(300_000, 232_448, "shared memory")


def compilation_error() -> Exception:
    from triton.compiler.errors import CompilationError

    return CompilationError("x", None, "an error in a kernel")  # type: ignore[arg-type]


def ptxas_error() -> Exception:
    from triton.runtime.errors import PTXASError

    return PTXASError("`ptxas` failed with error code 255")


def passes_failed() -> Exception:
    return RuntimeError("PassManager::run failed")


OF_CONFIGS = [out_of_resources, compilation_error, ptxas_error, passes_failed]
OF_THE_GPU = [
    getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA driver error: invalid argument"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("Triton Error [HIP]:  Code: 700, Messsage: an illegal memory access was encountered"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    TypeError("a mistake of ours"),
]


@pytest.mark.parametrize("error", OF_CONFIGS)
def test_a_config_that_fails_takes_for_ever(given: Launch, gpu: Gpu, error: Callable[[], Exception]) -> None:
    rule, other, third = spaces.configs(spaces.space_of(given.kernel), given.rule)[:3]

    def grid(config: Any) -> tuple[int, ...]:
        if all(config[name] == value for name, value in other.items() if name in config):
            raise error()
        gpu.launch()
        return (1,)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "_clock", lambda _: gpu.clock)
        timings = time_all(replace(given, grid=grid), [rule, other, third])
    assert [seconds for _, seconds in timings] == pytest.approx([2e-5, math.inf, 2e-5])


@pytest.mark.parametrize("error", OF_THE_GPU, ids=lambda error: str(error)[:20])
def test_what_fails_for_another_reason_ends_the_search(gpu: Gpu, error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        gpu.clock(call, quantiles=(0.5,))
    assert raised.value is error


def test_what_fails_after_the_first_call_ends_the_search(gpu: Gpu) -> None:
    def call() -> None:
        gpu.launch()
        if gpu.log.count("launch") == 4:
            raise passes_failed()

    with pytest.raises(RuntimeError, match="PassManager"):
        gpu.clock(call, quantiles=(0.5,))
