"""The position gates' launches, compiled for GPUs that are not there."""

from __future__ import annotations

import importlib

import pytest
import torch

from benchmarks.counted.machine_code import SHARED_LIMIT, TARGETS, Launch, block_launches, launches_of, promised
from benchmarks.counted.ptx import compiled_quickly

pytestmark = pytest.mark.compile

LAYOUTS = (torch.contiguous_format, torch.channels_last)
GATES = ("position_gate_fwd_kernel", "position_gate_bwd_kernel")


def position_gate_launches(
    kind: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    target: str,
    *,
    with_shortcut: bool = True,
    with_signal: bool = False,
) -> list[Launch]:
    """What a training step of AttentionModule(C) or AttentionGate(C) starts on ``target``, on meta tensors."""
    gating = (shape[0], shape[1] // 2, *shape[2:]) if with_signal else None
    return block_launches(kind, shape, dtype, memory_format, with_shortcut, gating=gating, target=target)


def map_gate_launches(outputs: int, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format):
    """What a training step of the multiply by logits starts, on meta tensors."""
    map_gate = importlib.import_module("triton_attn.ops.map_gate")

    def step() -> None:
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        logits = torch.empty_like(x)
        if outputs == 1:
            logits = torch.empty((shape[0], 1, *shape[2:]), dtype=dtype, device="meta")
        y, bits = map_gate.forward(x, logits, torch.empty_like(x), "sigmoid", True)
        map_gate.backward(y, x, logits, bits, "sigmoid", True, True)

    return launches_of(step)


def check(launch: Launch, target: str) -> None:
    report = compiled_quickly(launch, target)
    assert report.loads, f"{launch.name}: nothing is loaded, which is no kernel"
    assert report.stores, launch.name
    assert report.spilled == 0 or not promised(), launch.name
    assert report.shared <= SHARED_LIMIT[target], launch.name
    if launch.name in GATES:
        assert report.tensor_cores > 0, launch.name


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("channels", "dtype", "target"),
    [
        *((64, torch.bfloat16, target) for target in TARGETS),
        # float16 comes out much alike; the compile report has it on all targets.
        (64, torch.float32, "sm_80"),
        (64, torch.float32, "gfx942"),
        (256, torch.bfloat16, "sm_90"),
        (256, torch.bfloat16, "gfx942"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["pixel", "gate"])
def test_at_resnet_shapes(
    kind: str,
    channels: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    target: str,
) -> None:
    """With a shortcut: no spills, maps 16 bytes at a time, tensor cores. float32 is fused up to 64 channels."""
    launches = position_gate_launches(kind, (64, channels, 56, 56), dtype, memory_format, target)
    summed = ["summed_layer_kernel"] if kind == "gate" else []
    assert [launch.name for launch in launches] == [*summed, *GATES, "partial_sums_kernel"]
    for launch in launches:
        check(launch, target)
        report = compiled_quickly(launch, target)
        if launch.name in GATES and promised():
            assert report.widest_load >= 16, launch.name
            # AMD's compiler writes what its matrix cores have made 8 bytes at a time.
            assert report.widest_store >= (8 if target.startswith("gfx") else 16), launch.name


@pytest.mark.parametrize(
    ("kind", "channels", "size", "target"),
    [
        *((kind, 63, 33, target) for kind in ("pixel", "gate") for target in ("sm_80", "gfx942")),
        *(
            (*each, "sm_90")
            for each in (("pixel", 128, 28), ("gate", 128, 28), ("pixel", 64, 33), ("gate", 64, 33), ("gate", 200, 14))
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_other_shapes(
    kind: str,
    channels: int,
    size: int,
    memory_format: torch.memory_format,
    target: str,
) -> None:
    """Rows that are not aligned, channels that are no power of two: nothing spills."""
    for launch in position_gate_launches(kind, (64, channels, size, size), torch.bfloat16, memory_format, target):
        check(launch, target)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize(("channels", "dtype"), [(64, torch.float32), (128, torch.bfloat16)], ids=str)
def test_with_a_gating_signal(
    channels: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    target: str,
) -> None:
    """The signal in, its gradient out, without a shortcut."""
    shape = (64, channels, 56, 56)
    for launch in position_gate_launches(
        "gate", shape, dtype, memory_format, target, with_shortcut=False, with_signal=True
    ):
        check(launch, target)


@pytest.mark.parametrize(
    ("dtype", "target"),
    [(torch.bfloat16, "sm_80"), (torch.bfloat16, "sm_90"), (torch.float32, "gfx942")],
    ids=str,
)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("outputs", [1, 512])
def test_map_gate(outputs: int, dtype: torch.dtype, memory_format: torch.memory_format, target: str) -> None:
    launches = map_gate_launches(outputs, (64, 512, 28, 28), dtype, memory_format)
    assert [launch.name for launch in launches] == ["map_gate_fwd_kernel", "map_gate_bwd_kernel"]
    for launch in launches:
        check(launch, target)
        report = compiled_quickly(launch, target)
        assert report.widest_load >= 16, launch.name
        assert report.widest_store >= 16, launch.name


def test_the_batch_changes_no_program() -> None:
    """The last, smaller batch of an epoch compiles nothing again."""
    of_batch = {
        batch: set(position_gate_launches("gate", (batch, 64, 14, 14), torch.bfloat16, torch.channels_last, "sm_90"))
        | set(map_gate_launches(1, (batch, 512, 14, 14), torch.bfloat16, torch.channels_last))
        for batch in (64, 37, 1)
    }
    assert of_batch[64] == of_batch[37] == of_batch[1]
