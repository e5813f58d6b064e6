"""What a run allocates at most, beside what was there before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that are allocated at once while ``run`` runs, by PyTorch's own allocators."""
    return _on_gpu(run, device) if device.type == "cuda" else _on_cpu(run)


def _on_gpu(run: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


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
