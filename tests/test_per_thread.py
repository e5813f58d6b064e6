"""What is set for a while holds in the thread that set it, and nowhere else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import triton_attn
from triton_attn import backend
from triton_attn.ops import launch
from triton_attn.per_thread import PerThread
from triton_attn.tuning import chips, selection
from triton_attn.tuning.keys import Key, Shape
from triton_attn.tuning.tables import Entry

CPU = torch.device("cpu")
THREADS, CALLS = 8, 300


def in_another_thread(ask: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask).result(60)


def test_a_thread_begins_with_nothing_and_contexts_end() -> None:
    setting: PerThread[int] = PerThread()
    with setting.set(1):
        assert in_another_thread(lambda: setting.value) is None
        with pytest.raises(KeyError, match="2"), setting.set(2):
            raise KeyError(setting.value)
        assert setting.value == 1
    assert setting.value is None


def test_contexts_that_overlap_in_two_threads_leave_nothing_behind() -> None:
    """One thread enters, another enters, the first leaves, the second leaves."""
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def second() -> list[str]:
        assert first_is_in.wait(60)
        found = [backend.requested_backend()]
        with triton_attn.use_backend("triton"):
            second_is_in.set()
            assert first_is_out.wait(60)
            found.append(backend.requested_backend())
        return [*found, backend.requested_backend()]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(second)
        with triton_attn.use_backend("reference"):
            first_is_in.set()
            assert second_is_in.wait(60)
            assert backend.requested_backend() == "reference"
        first_is_out.set()
        assert answer.result(60) == ["auto", "triton", "auto"]
    assert backend.requested_backend() == "auto"


def test_the_environment_is_every_threads_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_default", "reference")
    with triton_attn.use_backend("triton"):
        assert in_another_thread(backend.requested_backend) == "reference"


def test_a_forward_that_is_computed_again_in_a_backwards_thread() -> None:
    """It goes by the default, or by what its checkpoint is told."""
    block, x = triton_attn.SEBlock(16), torch.randn(1, 16, 2, 2)
    asked: list[str] = []
    block.register_forward_pre_hook(lambda *_: asked.append(backend.requested_backend()))

    def step(**options: Any) -> list[str]:
        asked.clear()
        with triton_attn.use_backend("reference"):
            loss = checkpoint(block, x, use_reentrant=False, **options).sum()
            in_another_thread(loss.backward)
        return asked

    assert step() == ["reference", "auto"]
    told = contextlib.nullcontext(), triton_attn.use_backend("reference")
    assert step(context_fn=lambda: told) == ["reference", "reference"]


def test_another_threads_explain_hides_no_error() -> None:
    block, x = triton_attn.SEBlock(16), torch.zeros(1, 16, 2, 2)

    def ask() -> None:
        with triton_attn.use_backend("triton"):
            block(x)

    with backend.listen() as heard, pytest.raises(triton_attn.BackendError):
        in_another_thread(ask)
    assert heard == []


def test_eight_threads() -> None:
    """One explains all the time, one takes the reference, six insist on Triton, which there is not: always an error."""
    start, over = threading.Barrier(THREADS), threading.Event()
    x = torch.zeros(1, 16, 2, 2)

    def explain() -> list[str]:
        block, found = triton_attn.SEBlock(16), []
        start.wait(60)
        with triton_attn.use_backend("triton"):
            while not over.is_set():
                found += [entry.reason for entry in triton_attn.explain(block, x)]
        return found

    def take_the_reference() -> list[str]:
        block, found = triton_attn.SEBlock(16), []
        start.wait(60)
        while not over.is_set():
            with triton_attn.use_backend("reference"):
                block(x)
                found.append(backend.requested_backend())
        return found

    def insist() -> int:
        block, errors = triton_attn.SEBlock(16), 0
        start.wait(60)
        for _ in range(CALLS):
            with contextlib.suppress(triton_attn.BackendError), triton_attn.use_backend("triton"):
                block(x)
                continue
            errors += 1
        return errors

    with ThreadPoolExecutor(THREADS) as pool:
        others = pool.submit(explain), pool.submit(take_the_reference)
        insisting = [pool.submit(insist) for _ in range(THREADS - 2)]
        try:
            assert [each.result(120) for each in insisting] == [CALLS] * (THREADS - 2)
        finally:
            over.set()
        explained, requested = (each.result(60) for each in others)
        left = {pool.submit(backend.requested_backend).result(60) for _ in range(THREADS)}
    assert set(explained) == {"x is on cpu, not on a GPU"}
    assert set(requested) == {"reference"}
    assert left == {"auto"}
    assert backend.requested_backend() == "auto"


class Kernel:
    """Starts nothing."""

    @staticmethod
    def fn() -> None:
        """As the interpreter's kernels have it."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **_: None


def test_a_watcher_sees_the_launches_of_its_thread() -> None:
    shape = Shape(torch.float32, True, (64,), 49)

    def tuned() -> None:
        launch.tuned(Kernel(), lambda _: (1,), shape, {"BLOCK_P": 16}, CPU)

    seen: list[launch.Launch] = []
    with launch.watch(seen.append):
        in_another_thread(tuned)
        assert not seen
        tuned()
    assert len(seen) == 1


def test_a_chip_is_assumed_by_its_thread() -> None:
    with chips.assume(chips.CHIPS["gfx942"]):
        assert in_another_thread(lambda: chips.chip_of(CPU)) == chips.CHIPS["sm_80"]


def test_entries_are_forced_in_their_thread() -> None:
    """Also those that another thread has asked for: what it was told is not told to others."""
    from triton_attn.kernels.apply_gate import apply_gate_fwd_kernel as kernel

    shape = Shape(torch.bfloat16, True, (256,), 3136)
    rule = {"SPAN": 128, "BLOCK_C": 64, "BLOCK_P": 32, "num_warps": 4}
    key = Key("apply_gate_fwd_kernel", "bfloat16", "channels_last", (256,), 4096)

    def choose() -> Any:
        return selection.choose(kernel, shape, rule, CPU)["SPAN"]

    with selection.use_entries({key: Entry({"BLOCK_P": 32, "SPAN": 256}, 1e-4, 2e-4, 9)}):
        assert choose() == 256
        assert in_another_thread(choose) == 128
        assert choose() == 256


@pytest.mark.parametrize(
    "context",
    [lambda: launch.watch(print), lambda: chips.assume(chips.CHIPS["sm_90"]), lambda: selection.use_entries({})],
    ids=["watch", "assume", "use_entries"],
)
def test_what_is_set_for_launches_keeps_backwards_in_its_thread(context: Callable[[], Any]) -> None:
    """A GPU's would else run in one of PyTorch's own, where nothing is set; a CPU's always run where they begin."""
    with context():
        assert not torch._C._is_multithreading_enabled()
    assert torch._C._is_multithreading_enabled()
