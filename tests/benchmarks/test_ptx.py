"""What is read from PTX is what the machine code has."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counted.machine_code import Launch, TargetError, block_launches, compiled, obstacle
from benchmarks.counted.ptx import compiled_quickly, read_ptx

pytestmark = pytest.mark.compile

PTX = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.L1::evict_first.L2::cache_hint.v2.b64 { %rd4, %rd5 }, [ %rd1 + 0 ], %rd6;
    ld.global.b16 { %rs1 }, [ %rd2 + 0 ];
    ld.shared.v4.b32 {%r9, %r10, %r11, %r12}, [%r8];
    cp.async.cg.shared.global [ %r20 + 0 ], [ %rd7 + 0 ], 0x10, %r21;
    cp.async.ca.shared.global [ %r20 + 0 ], [ %rd7 + 0 ], 0x4, %r21;
    st.global.v2.b32 [ %rd3 + 0 ], { %r5, %r6 };
    st.global.b8 [ %rd3 + 0 ], { %rs2 };
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd8, %rd9, 1, 1, 1, 0, 0;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %f1 }, { %r1 }, { %r2 }, { %f2 };
"""


def test_widths_and_tensor_cores() -> None:
    assert read_ptx(PTX) == ((2, 4, 16, 16, 16), (1, 8), 2)
    assert read_ptx("ret;") == ((), (), 0)


@pytest.mark.parametrize(
    ("name", "channels", "side", "dtype", "target"),
    [
        ("eca", 256, 56, torch.bfloat16, "sm_90"),
        ("pixel", 256, 56, torch.bfloat16, "sm_80"),
        ("nonlocal", 2048, 7, torch.bfloat16, "sm_90"),
        ("nonlocal", 2048, 7, torch.bfloat16, "sm_100"),
        ("eca", 63, 28, torch.float16, "sm_90"),
        ("eca", 256, 56, torch.bfloat16, "gfx942"),
    ],
    ids=str,
)
def test_the_machine_code_says_the_same(name: str, channels: int, side: int, dtype: torch.dtype, target: str) -> None:
    shape, training = (64, channels, side, side), name == "nonlocal"  # the backwards of others have nothing new
    for launch in block_launches(name, shape, dtype, torch.channels_last, True, training, target=target):
        quick, full = compiled_quickly(launch, target), compiled(launch, target)
        assert set(quick.loads) == set(full.loads), launch.name
        assert set(quick.stores) == set(full.stores), launch.name
        assert (quick.tensor_cores > 0) == (full.tensor_cores > 0), launch.name
        assert (quick.spilled > 0) == (full.spilled > 0), launch.name
        assert (quick.num_warps, quick.registers, quick.shared) == (full.num_warps, full.registers, full.shared)


def test_a_target_for_which_something_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.amd.compiler import HIPBackend

    def find_linker() -> str:
        raise Exception("ROCm linker not found")

    monkeypatch.setattr(HIPBackend, "path_to_rocm_lld", staticmethod(find_linker), raising=False)
    obstacle.cache_clear()
    step = block_launches("eca", (2, 16, 14, 14), torch.float16, torch.channels_last, False, training=False)[0]
    with pytest.raises(TargetError, match="gfx942: ROCm linker not found"):
        compiled_quickly(step, "gfx942")
    assert compiled_quickly(step, "sm_90").registers > 0
    obstacle.cache_clear()


def test_a_spill_is_seen() -> None:
    """The reports must be able to say what tests of kernels look for."""
    step = next(
        each
        for each in block_launches("se", (64, 256, 56, 56), torch.float32, torch.contiguous_format, True)
        if "BLOCK_P" in dict(each.constants)
    )
    starved = Launch(
        step.kernel,
        step.signature,
        tuple((name, {"BLOCK_C": 4, "BLOCK_P": 1024}.get(name, value)) for name, value in step.constants),
        step.divisible,
        (("num_warps", 1),),
    )
    assert compiled(starved, "sm_90").spilled > 0
    assert compiled_quickly(starved, "sm_90").spilled > 0
