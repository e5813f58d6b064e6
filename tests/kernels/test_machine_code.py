"""Every launch of every block that has kernels, at ResNet-50's shapes, compiled for GPUs that are not there."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counted.machine_code import (
    SHARED_LIMIT,
    TARGETS,
    Launch,
    block_launches,
    compiled,
    launches_of,
    promised,
    served_blocks,
)
from benchmarks.counted.ptx import compiled_quickly

pytestmark = pytest.mark.compile

LAYER1, LAYER4 = (64, 256, 56, 56), (64, 2048, 7, 7)
BOTH = (torch.contiguous_format, torch.channels_last)
LAYOUTS = pytest.mark.parametrize("memory_format", BOTH, ids=str)
# Non-local has tests of its own: its tiles, and what may spill where, are another matter.
BLOCKS = pytest.mark.parametrize("name", [name for name in served_blocks() if name != "nonlocal"])


def check(step: Launch, target: str, width: int = 16) -> None:
    """A launch fits the target, spills nothing, and moves maps in words of ``width`` bytes."""
    report = compiled_quickly(step, target)
    assert report.shared <= SHARED_LIMIT[target], step.name
    if not promised():
        return
    assert report.spilled == 0, step.name
    if step.reads:
        assert report.widest_load >= width, step.name
    if step.writes:
        # AMD's compiler writes what its matrix cores have made 8 bytes at a time.
        from_matrix_cores = target.startswith("gfx") and report.tensor_cores
        assert report.widest_store >= (min(width, 8) if from_matrix_cores else width), step.name


@BLOCKS
@pytest.mark.parametrize(
    ("shape", "target", "dtype", "with_shortcut", "memory_format"),
    [
        # `make guard` has each site once on sm_90 in bfloat16, and the compile report has all: others come out much
        # alike.
        (LAYER1, "sm_80", torch.bfloat16, True, torch.contiguous_format),
        (LAYER1, "sm_80", torch.float32, True, torch.contiguous_format),
        (LAYER1, "sm_90", torch.float16, True, torch.contiguous_format),
        (LAYER1, "sm_90", torch.bfloat16, False, torch.channels_last),
        (LAYER1, "sm_100", torch.bfloat16, True, torch.channels_last),
        (LAYER1, "gfx942", torch.bfloat16, True, torch.contiguous_format),
        (LAYER1, "gfx942", torch.float32, True, torch.channels_last),
        (LAYER4, "sm_80", torch.bfloat16, True, torch.channels_last),
        (LAYER4, "gfx942", torch.bfloat16, True, torch.contiguous_format),
    ],
    ids=lambda value: {True: "shortcut", False: "plain"}.get(value, str(value)),
)
def test_site(
    name: str,
    shape: tuple[int, ...],
    target: str,
    dtype: torch.dtype,
    with_shortcut: bool,
    memory_format: torch.memory_format,
) -> None:
    """16 bytes at a time, but of contiguous rows of 49 elements, which are not aligned."""
    steps = block_launches(name, shape, dtype, memory_format, with_shortcut, target=target)
    assert any(step.reads for step in steps)
    assert any(step.writes for step in steps)
    for step in steps:
        check(step, target, width=2 if shape == LAYER4 and memory_format == torch.contiguous_format else 16)


@pytest.mark.parametrize("name", ["coordinate", "dual"])
@pytest.mark.parametrize("shape", [(64, 1024, 14, 14), LAYER4], ids=str)
def test_gate_networks_beside_float32_maps(name: str, shape: tuple[int, ...]) -> None:
    """A product is three there, of operands in two parts: what has the least registers to spare."""
    found = block_launches(name, shape, torch.float32, BOTH[1], False, target="sm_90")
    found = [step for step in found if step.name.startswith("dense")]
    assert len(found) > 3
    for step in found:
        check(step, "sm_90")


@BLOCKS
@pytest.mark.parametrize("target", ["sm_90"])
def test_inference(name: str, target: str) -> None:
    steps = block_launches(name, LAYER1, torch.bfloat16, torch.channels_last, True, training=False, target=target)
    training = block_launches(name, LAYER1, torch.bfloat16, torch.channels_last, True, target=target)
    assert 0 < len(steps) < len(training)
    for step in steps:
        check(step, target)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
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
    map_steps = [step for step in block_launches("se", shape, dtype, memory_format, True) if step.reads or step.writes]
    assert len(map_steps) == 4
    for step in map_steps:
        check(step, target, width)


@BLOCKS
@LAYOUTS
def test_the_batch_changes_no_program(name: str, memory_format: torch.memory_format) -> None:
    """The last, smaller batch of an epoch compiles nothing again, and sums in no other order."""
    of_batch = {
        batch: set(block_launches(name, (batch, 256, 14, 14), torch.bfloat16, memory_format, True))
        for batch in (64, 37, 1)
    }
    assert of_batch[64] == of_batch[37] == of_batch[1]


@pytest.mark.parametrize("target", TARGETS)
def test_tensor_core_instructions_are_counted(target: str) -> None:
    import triton
    import triton.language as tl

    from triton_attn.ops import launch

    @triton.jit
    def dot_kernel(c_ptr, a_ptr, b_ptr, USE_DOT: tl.constexpr, SIZE: tl.constexpr):
        i = tl.arange(0, SIZE)
        tile = i[:, None] * SIZE + i[None, :]
        a, b = tl.load(a_ptr + tile), tl.load(b_ptr + tile)
        tl.store(c_ptr + tile, tl.dot(a, b) if USE_DOT else a + b)

    def run() -> None:
        a, b, c = (torch.empty(64, 64, dtype=torch.bfloat16, device="meta") for _ in range(3))
        for use_dot in (True, False):
            launch.start(dot_kernel, (1,), a.device, c_ptr=c, a_ptr=a, b_ptr=b, USE_DOT=use_dot, SIZE=64, num_warps=4)

    for read in (compiled, compiled_quickly):
        dot, add = (read(step, target) for step in launches_of(run))
        assert dot.num_warps == add.num_warps == 4
        assert dot.tensor_cores > 0
        assert add.tensor_cores == 0


def test_what_a_launch_reads_and_writes() -> None:
    """Maps only, copied ones and those of the shortcut too; vectors and parameters are none."""
    layout = torch.channels_last
    steps = block_launches("se", (2, 64, 28, 28), torch.bfloat16, layout, True)
    reads, writes = (sum(len(getattr(step, kind)) for step in steps) for kind in ("reads", "writes"))
    assert (reads, writes) == (6, 3)  # x, x, shortcut; grad, x, grad / y; dx, dshortcut
