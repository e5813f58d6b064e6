"""Non-local attention's memory and traffic, counted: no matrix of positions × positions, and linear in the keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import triton_attn
from tests.ops.attention import LAYOUTS, draw
from tests.parity import lay_out
from triton_attn import functional

pytestmark = pytest.mark.interpreter


class Allocations(TorchDispatchMode):
    """What every operator allocates, also within our ops, on the meta device; their kernels are not started."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from triton_attn.ops.library import IMPLEMENTATIONS

        if func in IMPLEMENTATIONS:
            with self:
                return IMPLEMENTATIONS[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given:
                self.largest = max(self.largest, t.numel())
                self.total += t.numel() * t.itemsize
        return result


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_attn import backend
    from triton_attn.ops import launch

    monkeypatch.setattr(launch, "start", lambda *_, **__: None)
    monkeypatch.setattr(backend, "_obstacle", lambda *_: None)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "side"), [(64, 33), (512, 40), (2048, 33), (64, 112)])
def test_no_matrix_is_ever_allocated(channels: int, side: int, layout: str) -> None:
    """Above 1024 positions: nothing is larger than the projections together, or the weights."""
    block = triton_attn.NonLocalBlock(channels, device="meta")
    x, shortcut = (
        lay_out(torch.empty(1, channels, side, side, device="meta"), layout).requires_grad_() for _ in range(2)
    )
    with Allocations() as seen:
        block(x, shortcut).sum().backward()
    # The projections together, or their weights: as many as the three have, or the values' alone.
    together = 2 * channels**2 <= 2 * channels * side**2
    assert seen.largest == (2 * channels * max(side**2, channels) if together else channels * channels)
    if channels == 64:
        assert seen.largest < side**4
    # The meter does see the matrix where there is one.
    with Allocations() as seen:
        block.forward_explicit(x, shortcut).sum().backward()
    assert seen.largest >= side**4


@pytest.mark.usefixtures("nothing_starts")
def test_a_large_image_takes_little_more_memory_than_without_attention() -> None:
    """ResNet-50 at 1024², non-local at the stem: bytes saved for the backward, and bytes allocated in all."""

    def memory(attention: str | None) -> tuple[int, int]:
        model = triton_attn.resnet50(attention, where="stem", num_classes=10).to("meta")
        images = torch.empty(1, 3, 1024, 1024, device="meta").contiguous(memory_format=torch.channels_last)
        saved: dict[int, Tensor] = {}

        def keep(t: Tensor) -> Tensor:
            saved[t.untyped_storage()._cdata] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), Allocations() as seen:
            loss = model(images).sum()
        kept = sum(t.untyped_storage().nbytes() for t in saved.values())
        with seen:
            loss.backward()
        return kept, seen.total

    plain, ours = memory(None), memory("nonlocal")
    print("bytes saved and allocated, plain and with non-local:", plain, ours)
    assert plain[0] > 0
    assert ours[0] < 1.2 * plain[0]
    assert ours[1] < 1.2 * plain[1]


def test_traffic_grows_with_the_positions_at_a_fixed_number_of_tiles() -> None:
    """What a block of queries reads and writes, forward and backward, is linear in the keys: nothing of (HW)² moves."""
    from benchmarks.counted.meter import count

    def moved(positions: int) -> list[int]:
        """Forward and backward, with as many queries whatever the keys."""
        inputs = [
            draw(1, n, 16, dtype=torch.float16, seed=i).requires_grad_()
            for i, n in enumerate((64, positions, positions))
        ]
        found = []
        with count() as traffic:
            y = functional.nonlocal_attention(*inputs)
        found.append(traffic.total)
        with count() as traffic:
            y.sum().backward()
        return [*found, traffic.total]

    small, middle, large = (moved(positions) for positions in (384, 768, 1536))
    for a, b, c in zip(small, middle, large, strict=True):
        assert c - b == pytest.approx(2 * (b - a), rel=0.02)
