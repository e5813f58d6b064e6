"""What a run allocates at most, beside what was there before, and what becomes of memory that is freed."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.files import on_gpu

# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MB = 2**20


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that are allocated at once while ``run`` runs, by PyTorch's own allocators."""
    return _on_gpu(run) if on_gpu() else _on_cpu(run)


def _on_gpu(run: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _on_cpu(run: Callable[[], Any]) -> int:
    """Added up from the profiler's notes of every allocation and release."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Within this, the process keeps the memory that it frees, where its allocator is glibc's; whether that is so.

    By itself glibc gives maps of some ten megabytes back to the system or keeps them, as they happen to lie on its
    heap. To take one anew can cost as much as what is computed on it, and falls to whoever is at work.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, TypeError, AttributeError):  # not Linux, or another C library
        yield False
        return
    try:
        yield bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
    finally:
        # What glibc arrives at by itself when blocks of up to 32 MB have been freed.
        for parameter, value in ((M_MMAP_MAX, 65536), (M_MMAP_THRESHOLD, 32 * MB), (M_TRIM_THRESHOLD, 64 * MB)):
            mallopt(parameter, value)
        trim(0)
