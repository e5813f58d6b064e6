"""In the place of ``launch.start``: kernels are compiled for a GPU and executed here, on tensors of the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from benchmarks.counted.machine_code import Launch, specialised
from triton_attn import backend
from triton_attn.ops import launch as launches
from triton_attn.tuning import chips

from .instructions import NotExecutedError
from .program import IN_ORDER, Order, Program, program_of
from .runtime import Finding

Run = Callable[[Program, tuple[int, ...], list[Any]], "tuple[Finding, ...]"]


class Executor:
    """Executes launches for the first of ``targets`` whose code can be, and notes what a GPU would punish.

    Attributes:
        executed: the launches, each with its target.
        found: of every launch that was not clean, the kernel and the findings.
    """

    def __init__(self, targets: tuple[str, ...] = ("sm_80",), order: Order = IN_ORDER, run: Run | None = None) -> None:
        self.targets, self.order, self._run = targets, order, run
        self.executed: list[tuple[Launch, str]] = []
        self.found: list[tuple[str, tuple[Finding, ...]]] = []

    def start(self, kernel: Any, grid: tuple[int, ...], _: torch.device, **arguments: Any) -> None:
        """What ``launch.start`` does."""
        if 0 in grid:
            return
        given = specialised(kernel, arguments)
        target, program = self._compiled(given)
        values = [arguments[name] for name, type_ in given.signature if type_ != "constexpr"]
        findings = (
            program.run(grid, values, self.order) if self._run is None else self._run(program, tuple(grid), values)
        )
        self.executed.append((given, target))
        if findings:
            self.found.append((kernel.fn.__name__, findings))

    def _compiled(self, given: Launch) -> tuple[str, Program]:
        for target in self.targets[:-1]:
            with contextlib.suppress(NotExecutedError):
                return target, program_of(given, target)
        return self.targets[-1], program_of(given, self.targets[-1])

    @contextlib.contextmanager
    def installed(self) -> Iterator[Executor]:
        """Within this, blocks under ``use_backend("triton")`` take tensors of the CPU, and launches come here."""

        def obstacle(x: torch.Tensor, *_: torch.Tensor | None) -> str | None:
            return None if x.dtype in backend.DTYPES else f"{x.dtype}"

        with (
            mock.patch.object(launches, "start", self.start),
            mock.patch.object(backend, "_obstacle", obstacle),
            chips.assume(chips.CHIPS[self.targets[0]]),
        ):
            yield self
