"""Within :func:`watched`, a kernel under the interpreter may touch nothing but the elements of its tensors.

On a GPU what lies behind a tensor is most often another one: a wrong address is wrong numbers, or nothing at all,
until it is an illegal access. Masked lanes may point anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Raise an AssertionError at an access outside; gives the names of the kernels that ran."""
    from triton.runtime.interpreter import InterpreterBuilder

    from triton_attn.ops import launch

    start, names = launch.start, []
    inside: list[tuple[int, int, str]] = []  # first address, end, argument

    def watched_start(kernel: Any, grid: tuple[int, ...], device: torch.device, **arguments: Any) -> None:
        names.append(kernel.fn.__name__)
        inside[:] = [
            (t.data_ptr(), t.data_ptr() + reach(t) * t.itemsize, name)
            for name, t in arguments.items()
            if isinstance(t, Tensor)
        ]
        start(kernel, grid, device, **arguments)

    def check(pointers: Any, mask: Any) -> None:
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        well = np.zeros(addresses.shape, bool)
        for first, end, _ in inside:
            well |= (addresses >= first) & (addresses + size <= end)
        if not well.all():
            wrong = int(addresses[~well][0])
            nearest, first = min(((name, first) for first, _, name in inside), key=lambda each: abs(wrong - each[1]))
            raise AssertionError(f"{names[-1]} touches byte {wrong - first} of {nearest}, which is no element of it")

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def watched_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def watched_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(launch, "start", watched_start),
        mock.patch.object(InterpreterBuilder, "create_masked_load", watched_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", watched_store),
    ):
        yield names


def reach(t: Tensor) -> int:
    """How many elements lie between a tensor's first and last, both counted."""
    return 1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
