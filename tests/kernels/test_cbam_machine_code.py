"""Every launch of CBAM's and dual attention's op at ResNet-50's shapes, compiled for GPUs that are not there."""

from __future__ import annotations

import importlib

import pytest
import torch

from benchmarks.machine_code import SHARED_LIMIT, Launch, launches_of
from benchmarks.ptx import compiled_quickly

pytestmark = pytest.mark.compile

READS = ("spatial_pool_kernel", "spatial_apply_fwd_kernel", "spatial_gate_bwd_kernel", "spatial_pool_bwd_kernel")
WRITES = ("spatial_apply_fwd_kernel", "spatial_apply_bwd_kernel")
MAP_KERNELS = {*READS, *WRITES}


def launches(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, with_shortcut: bool, two: bool
) -> list[Launch]:
    """What a training step of CBAM(C, 16), or with ``two`` DualAttentionBlock(C, 16), starts, on meta tensors."""
    op = importlib.import_module("triton_attn.ops.cbam")
    channels, hidden = shape[1], shape[1] // 16

    def make(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    def step() -> None:
        x = make(*shape).contiguous(memory_format=memory_format)
        shortcut = torch.empty_like(x) if with_shortcut else None
        first = make(hidden, channels), make(hidden), make(channels, hidden), make(channels)
        second = first if two else (None,) * 4
        conv_weight = make(1, 2, 7, 7)
        y, *saved, bits = op.forward(x, *first, *second, conv_weight, make(1), shortcut, True)
        weights = first[0], first[2], second[0], second[2], conv_weight
        op.backward(y, x, *weights, *saved, bits if with_shortcut else None, True, True)

    # The sum over positions is SE's as well, and compiled there.
    return [launch for launch in launches_of(step) if launch.name != "squeeze_fwd_kernel"]


LAYER1 = ((64, 256, 56, 56), torch.bfloat16, True)
STEM = ((64, 64, 112, 112), torch.float32, False)
LAYER4 = ((64, 2048, 7, 7), torch.float16, True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype", "two", "target"),
    [
        (*LAYER1, "sm_90"),  # test_machine_code has the other targets
        (*STEM, "sm_80"),
        *((*LAYER4, target) for target in ("sm_90", "gfx942")),
    ],
    ids=str,
)
def test_every_launch(
    shape: tuple[int, ...], dtype: torch.dtype, two: bool, target: str, memory_format: torch.memory_format
) -> None:
    found = launches(shape, dtype, memory_format, True, two)
    assert len(found) == 8
    aligned = memory_format == torch.channels_last or shape[2] * shape[3] % 16 == 0
    for launch in found:
        report = compiled_quickly(launch, target)
        assert report.spilled == 0, launch.name
        assert report.shared <= SHARED_LIMIT[target], launch.name
        if aligned and launch.name in MAP_KERNELS:
            assert report.widest_load >= 16, launch.name
            # No map goes element by element: of 2 bytes there is only the convolution's weight.
            has_weight = any(name.startswith("conv") for name, _ in launch.signature)
            assert has_weight or 2 not in report.loads, launch.name
        if aligned and launch.name in WRITES:
            assert report.widest_store >= 16, launch.name
            assert 2 not in report.stores, launch.name
