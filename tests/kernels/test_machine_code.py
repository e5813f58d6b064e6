"""Every launch of the SE op at ResNet-50's shapes, compiled for GPUs that are not there."""

from __future__ import annotations

import importlib

import pytest
import torch

from benchmarks.machine_code import SHARED_LIMIT, TARGETS, Launch, compiled, launches_of

pytestmark = pytest.mark.compile

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYER1, LAYER4 = (64, 256, 56, 56), (64, 2048, 7, 7)
MAP_KERNELS = ("channel_sum_kernel", "apply_gate_fwd_kernel", "apply_gate_bwd_kernel")


def se_launches(
    dtype: torch.dtype, memory_format: torch.memory_format, with_shortcut: bool, shape: tuple[int, ...]
) -> list[Launch]:
    """What a training step of SEBlock(C, 16) starts, on meta tensors."""
    se = importlib.import_module("triton_attn.ops.se")
    channels, hidden = shape[1], shape[1] // 16

    def make(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    def step() -> None:
        x = make(*shape).contiguous(memory_format=memory_format)
        shortcut = torch.empty_like(x) if with_shortcut else None
        weights = make(hidden, channels), make(hidden), make(channels, hidden), make(channels)
        y, *saved, bits = se.forward(x, *weights, shortcut, True)
        se.backward(y, x, weights[0], weights[2], *saved, bits if with_shortcut else None, True, True)

    return launches_of(step)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["plain", "shortcut"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer1(target: str, memory_format: torch.memory_format, with_shortcut: bool, dtype: torch.dtype) -> None:
    launches = se_launches(dtype, memory_format, with_shortcut, LAYER1)
    assert len(launches) == 9
    for launch in launches:
        report = compiled(launch, target)
        assert report.spilled == 0, launch.name
        assert report.shared <= SHARED_LIMIT[target], launch.name
        if launch.name in MAP_KERNELS:
            assert report.widest_load >= 16, launch.name
            # What else is loaded is the mask and the gates: no map goes element by element.
            assert 2 not in report.loads, launch.name
        if launch.name.startswith("apply"):
            assert report.widest_store >= 16, launch.name
            assert 2 not in report.stores, launch.name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layer4(target: str, memory_format: torch.memory_format) -> None:
    """7 × 7 maps: 16 bytes at a time in channels_last; contiguous rows of 49 elements are not aligned."""
    for launch in se_launches(torch.bfloat16, memory_format, True, LAYER4):
        report = compiled(launch, target)
        assert report.spilled == 0, launch.name
        assert report.shared <= SHARED_LIMIT[target], launch.name
        assert report.registers <= 168, launch.name
        if launch.name in MAP_KERNELS and memory_format == torch.channels_last:
            assert report.widest_load >= 16, launch.name


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize(
    ("dtype", "memory_format", "shape", "width"),
    [
        (torch.bfloat16, torch.channels_last, (64, 40, 28, 28), 16),
        (torch.bfloat16, torch.contiguous_format, (64, 512, 28, 28), 16),
        (torch.bfloat16, torch.contiguous_format, (64, 1024, 14, 14), 8),
        (torch.float32, torch.contiguous_format, (64, 1024, 14, 14), 16),
        (torch.bfloat16, torch.channels_last, (64, 63, 28, 28), 2),
        (torch.float32, torch.contiguous_format, (2, 16, 35, 35), 4),
    ],
    ids=str,
)
def test_rows_of_every_alignment(
    target: str, dtype: torch.dtype, memory_format: torch.memory_format, shape: tuple[int, ...], width: int
) -> None:
    """Rows are moved in the widest words that they are multiples of, and nothing spills."""
    map_launches = [each for each in se_launches(dtype, memory_format, True, shape) if each.name in MAP_KERNELS]
    assert len(map_launches) == 4
    for launch in map_launches:
        report = compiled(launch, target)
        assert report.spilled == 0, launch.name
        if launch.name == "channel_sum_kernel":
            assert report.widest_load >= width
        else:
            assert report.widest_store >= width, launch.name


def test_the_batch_changes_no_program() -> None:
    """The last, smaller batch of an epoch compiles nothing again, and sums in no other order."""
    of_batch = {
        batch: set(se_launches(torch.bfloat16, torch.channels_last, True, (batch, 256, 14, 14)))
        for batch in (64, 37, 1)
    }
    assert of_batch[64] == of_batch[37] == of_batch[1]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_inference(target: str) -> None:
    se = importlib.import_module("triton_attn.ops.se")

    def infer() -> None:
        x = torch.empty(64, 256, 56, 56, dtype=torch.bfloat16, device="meta", memory_format=torch.channels_last)
        weights = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((16, 256), (16,), (256, 16), (256,)))
        se.forward(x, *weights, torch.empty_like(x), False)

    launches = launches_of(infer)
    assert [launch.name for launch in launches] == [
        "channel_sum_kernel",
        "dense_fwd_kernel",
        "dense_fwd_kernel",
        "apply_gate_fwd_kernel",
    ]
    for launch in launches:
        assert compiled(launch, target).spilled == 0


def test_a_spill_is_seen() -> None:
    """The report must be able to say what the tests above look for."""
    launch = next(
        each for each in se_launches(torch.float32, torch.contiguous_format, True, LAYER1) if "sum" in each.name
    )
    starved = Launch(
        launch.kernel,
        launch.signature,
        tuple((name, {"BLOCK_C": 16, "BLOCK_P": 1024}.get(name, value)) for name, value in launch.constants),
        launch.divisible,
        (("num_warps", 1),),
    )
    assert compiled(starved, "sm_90").spilled > 0
