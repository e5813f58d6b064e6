"""What is set for a while, in one thread: no other thread sees it.

On a GPU a backward runs in a thread of its own. What is set for launches is set by ``set_and_backwards``, by which
backwards that begin meanwhile run in the thread they begin in.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class _Set(threading.local):
    """How many values are set in this thread."""

    def __init__(self) -> None:  # see PerThread
        self.count = 0


_set = _Set()


def nothing_is_set() -> bool:
    """Whether no value of any kind is set in this thread: one look in place of one at each."""
    return not _set.count


class PerThread(threading.local, Generic[T]):
    """A value that every thread has of its own; at first it is None."""

    def __init__(self) -> None:  # is called in each thread; torch.compile overlooks changes to what a class has
        self.value: T | None = None

    @contextlib.contextmanager
    def set(self, value: T) -> Iterator[T]:
        """Within this, in this thread, it is ``value``."""
        outer, self.value = self.value, value
        _set.count += 1
        try:
            yield value
        finally:
            self.value = outer
            _set.count -= 1

    @contextlib.contextmanager
    def set_and_backwards(self, value: T) -> Iterator[T]:
        """The same, and backwards that begin within run in this thread, on a GPU too."""
        with self.set(value), torch.autograd.set_multithreading_enabled(False):
            yield value
