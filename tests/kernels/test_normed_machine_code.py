"""The kernels of a channel gate with a batch norm in front as machine code: no spills, and whole words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.counted.machine_code import Launch, launches_of, serving_meta_tensors
from benchmarks.counted.ptx import compiled_quickly
from triton_attn import create_attention, functional

pytestmark = pytest.mark.compile
KERNELS = {"normed_squeeze_kernel", "normed_apply_fwd_kernel", "normed_sums_kernel", "normed_apply_bwd_kernel"}
VECTORS = {"batch_statistics_kernel", "batch_norm_parameters_bwd_kernel"}
# With an activation there are more sums, and more registers. sm_80 and sm_100 were dropped: they have the registers of
# sm_90, and are compiled by the same compiler.
WAYS = pytest.mark.parametrize(
    ("memory_format", "dtype", "target"),
    [
        (torch.channels_last, torch.bfloat16, "sm_90"),
        (torch.contiguous_format, torch.float32, "sm_90"),
        (torch.channels_last, torch.bfloat16, "gfx942"),
    ],
    ids=str,
)


def launches(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, activation: str
) -> dict[str, Launch]:
    """Those of a training step with a shortcut, by their kernels' names."""

    def make(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    x, shortcut, grad = (make(*shape).contiguous(memory_format=memory_format) for _ in range(3))
    weight, bias = make(shape[1]).requires_grad_(), make(shape[1]).requires_grad_()
    norm = functional.BatchNorm(weight, bias, training=True, activation=activation)
    leaves = [x.requires_grad_(), shortcut.requires_grad_(), weight, bias]

    def step() -> None:
        torch.autograd.grad(functional.eca(x, make(3), shortcut, norm=norm), leaves, grad)

    with serving_meta_tensors():
        return {each.name: each for each in launches_of(step) if each.name in KERNELS | VECTORS}


@WAYS
def test_no_spills_and_wide_words(memory_format: torch.memory_format, dtype: torch.dtype, target: str) -> None:
    found = launches((64, 256, 56, 56), dtype, memory_format, "silu")
    assert set(found) == KERNELS | VECTORS
    for name, launch in found.items():
        report = compiled_quickly(launch, target)
        assert report.spilled == 0, name
        # AMD's wavefronts are twice as wide: a thread has half as many elements of a tile.
        if name in KERNELS:
            assert report.widest_load >= (8 if target == "gfx942" else 16), name


BY_NETWORKS = {
    "coordinate": (
        *("strip_sums_kernel", "batch_statistics_kernel", "normed_strips_kernel", "strip_apply_fwd_kernel"),
        *(
            "strip_sums_kernel",
            "normed_strips_bwd_kernel",
            "batch_norm_parameters_bwd_kernel",
            "strip_apply_bwd_kernel",
        ),
    ),
    "cbam": (
        *("squeeze_fwd_kernel", "batch_statistics_kernel", "normed_peak_kernel", "spatial_pool_kernel"),
        *("spatial_apply_fwd_kernel", "spatial_gate_bwd_kernel", "normed_gate_bwd_kernel", "spatial_pool_bwd_kernel"),
        *("normed_gate_bwd_kernel", "batch_norm_parameters_bwd_kernel", "spatial_apply_bwd_kernel"),
    ),
}


def launches_by_networks(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> list[Launch]:
    """Those of a published block behind a batch norm, of a training step with a shortcut."""

    def make() -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory_format).requires_grad_()

    x, shortcut, grad = (make() for _ in range(3))
    with torch.device("meta"):
        block = create_attention(f"published.{name}", shape[1], dtype=dtype)
        norm = torch.nn.BatchNorm2d(shape[1], dtype=dtype)

    def step() -> None:
        torch.autograd.grad(block.behind(norm, x, shortcut), [x, shortcut, *norm.parameters()], grad)

    with serving_meta_tensors():
        return launches_of(step)


@pytest.mark.parametrize("name", BY_NETWORKS)
@WAYS
def test_published_blocks_with_networks_of_their_own(
    name: str, memory_format: torch.memory_format, dtype: torch.dtype, target: str
) -> None:
    found = launches_by_networks(name, (64, 256, 28, 28), dtype, memory_format)
    assert tuple(launch.name for launch in found) == BY_NETWORKS[name]
    for launch in found:
        assert compiled_quickly(launch, target).spilled == 0, launch.name


def test_rows_of_no_whole_words() -> None:
    given = (64, 2048, 7, 7), torch.bfloat16, torch.contiguous_format
    found = [*launches(*given, "none").values()]
    for launch in found + [launch for name in BY_NETWORKS for launch in launches_by_networks(name, *given)]:
        assert compiled_quickly(launch, "sm_90").spilled == 0, launch.name
