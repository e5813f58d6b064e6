"""What a run allocates at most, beside what was there before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.files import on_gpu


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that are allocated at once while ``run`` runs, by PyTorch's own allocators."""
    if on_gpu():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Added up from the profiler's notes of every allocation and release.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
