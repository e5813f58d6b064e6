"""What tuning gains: the rule's config, the table's (the fastest that changes no bit), and the best of all tried.

The launches of blocks at ResNet-50's shapes are searched by ``triton_attn.tune``, each over its whole space, and
written down one by one; the table itself is ``tuned.json`` beside the results.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import triton_attn
from benchmarks.files import LATE, device
from benchmarks.timed.cases import BlockCase
from benchmarks.timed.turns import Results
from triton_attn.tune import Call, tune_calls
from triton_attn.tuning.keys import Key
from triton_attn.tuning.search import Found


def record(found: Found) -> dict[str, Any]:
    """What the file says of a launch; seconds are medians."""
    best = min(found.timings, key=lambda each: each[1])
    return {
        "configs": len(found.timings),
        "other_bits": len(found.rejected),
        "seconds": {"rule": found.rule_seconds, "table": found.seconds, "best": best[1]},
        "config": {"rule": found.rule, "table": found.config, "best": best[0]},
    }


def test_tuning(results: Results, case: BlockCase) -> None:
    left = results.left()
    if left is not None and left <= 0:
        pytest.skip(LATE)
    block: Any = triton_attn.create_attention(case.block, case.shape[1], dtype=getattr(torch, case.dtype))
    x = torch.empty(case.shape, dtype=getattr(torch, case.dtype), device="meta")
    x = x.contiguous(memory_format=torch.channels_last if case.layout == "channels_last" else torch.contiguous_format)

    def note(key: Key, found: Found) -> None:
        results.known.add(str(key))
        results.put(key, **record(found))

    tuned = tune_calls(
        [Call(block, {"x": x, "shortcut": x})],
        torch.empty((1, 1, 1, 1), dtype=x.dtype, device=device()),
        budget=left,
        path=results.path.with_name("tuned.json"),
        again=True,
        skip=lambda key: str(key) in results.known,  # blocks share kernels, and so keys
        on_found=note,
    )
    assert not tuned.failed, tuned.failed
    if tuned.left_out:
        pytest.skip(LATE)
