"""Every kind of fault is found: by kernels written to make it, and by kernels of ours with a barrier left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import triton_attn
from tests.execute.configurations import FIXED, results
from tests.execute.hook import Executor
from tests.execute.instructions import NotExecutedError
from tests.execute.mutations import BLOCKS, mutants
from tests.execute.program import Program
from tests.execute.runtime import Finding, obstacle
from tests.execute.translate import translate

pytestmark = [
    pytest.mark.execute,
    pytest.mark.skipif(obstacle() is not None, reason=f"executing kernels: {obstacle()}"),
]

# As Triton writes them: thread t's word of global memory (%own), and of shared memory (%shared).
HEAD = """
@global_smem = external addrspace(3) global [0 x i8]
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.bar.warp.sync(i32)
declare i32 @llvm.nvvm.shfl.sync.bfly.i32(i32, i32, i32, i32)
define ptx_kernel void @control(ptr addrspace(1) %x) {
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %p = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %opposite = sub i32 63, %t
  %neighbour = xor i32 %t, 1
  %first = icmp eq i32 %t, 0
  %is_early = icmp slt i32 %t, 32
  %own = getelementptr i32, ptr addrspace(1) %x, i32 %t
  %shared = getelementptr i32, ptr addrspace(3) @global_smem, i32 %t
  %other_shared = getelementptr i32, ptr addrspace(3) @global_smem, i32 %opposite
  %next_shared = getelementptr i32, ptr addrspace(3) @global_smem, i32 %neighbour
"""
TAIL = "  ret void\n}\n"
BARRIER = "  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)\n"
WARP = "  call void @llvm.nvvm.bar.warp.sync(i32 -1)\n"


def put(where: str, value: str) -> str:
    assembly = "st.global.b32 [ $0 + 0 ], { $1 };"
    return f'  call void asm sideeffect "{assembly}", "l,r"(ptr addrspace(1) {where}, i32 {value})\n'


def get(name: str, where: str) -> str:
    assembly = "mov.u32 $0, 0x0;\\0A\\09ld.global.b32 { $0 }, [ $1 + 0 ];"
    return f'  {name} = call i32 asm sideeffect "{assembly}", "=r,l"(ptr addrspace(1) {where})\n'


def put_shared(where: str = "%shared", value: str = "%t") -> str:
    return f'  call void asm sideeffect "st.shared.b32 [ $0 + 0 ], $1;", "r,r"(ptr addrspace(3) {where}, i32 {value})\n'


def get_shared(name: str, where: str) -> str:
    return f"  {name} = load i32, ptr addrspace(3) {where}, align 4\n"


def run(body: str, programs: int = 1, size: int = 64, short: int = 0) -> tuple[torch.Tensor, set[str]]:
    ir, types = translate(HEAD + body + TAIL, "control")
    x = torch.full((size,), 7, dtype=torch.int32)
    found = Program("control", ir, types, 64, 256).run((programs,), [x], short=short)
    return x, {each.kind for each in found}


SOUND = put_shared() + BARRIER + get_shared("%v", "%other_shared") + put("%own", "%v")
BEFORE_ENTRY = "  br i1 {0}, label %yes, label %no\nyes:\n"
FAULTS = {
    "out of bounds": "  %far = getelementptr i32, ptr addrspace(1) %own, i32 64\n" + put("%far", "1"),
    "misaligned": "  %odd = getelementptr i8, ptr addrspace(1) %x, i32 2\n" + get("%v", "%odd"),
    "unwritten shared memory": get_shared("%v", "%shared") + put("%own", "%v"),
    "race in shared memory": SOUND.replace(BARRIER, ""),
    "race in a warp": put_shared() + get_shared("%v", "%next_shared") + put("%own", "%v"),
    "race in a program": put("%own", "%t")
    + "  %o = getelementptr i32, ptr addrspace(1) %x, i32 %opposite\n"
    + get("%v", "%o")
    + put_shared("%shared", "%v"),
    "divergent collective": BEFORE_ENTRY.format("%is_early") + BARRIER + "  br label %no\nno:\n",
    "deadlock": BEFORE_ENTRY.format("%first") + WARP + "  br label %no\nno:\n",
}


def test_what_is_sound_has_no_findings() -> None:
    x, found = run(SOUND)
    assert not found
    assert torch.equal(x, torch.arange(63, -1, -1, dtype=torch.int32))
    warp = put_shared() + WARP + get_shared("%v", "%next_shared") + put("%own", "%v")
    x, found = run(warp)
    assert not found
    assert torch.equal(x, torch.arange(64, dtype=torch.int32) ^ 1)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found(kind: str) -> None:
    assert kind in run(FAULTS[kind])[1]


def test_the_maximum_of_zeros_is_positive() -> None:
    zeros = "  %a = select i1 %first, float 0.0, float -0.0\n  %b = select i1 %first, float -0.0, float 0.0\n"
    maximum = "  %m = call float @llvm.maxnum.f32(float %a, float %b)\n  %v = bitcast float %m to i32\n"
    ir, types = translate(
        "declare float @llvm.maxnum.f32(float, float)\n" + HEAD + zeros + maximum + put("%own", "%v") + TAIL, "control"
    )
    x = torch.full((64,), 7, dtype=torch.int32)
    assert not Program("control", ir, types, 64, 256).run((1,), [x])
    assert not x.any()


def test_programs_that_write_one_place_race() -> None:
    assert run(put("%own", "%t"), programs=2)[1] == {"race between programs"}
    assert run(get("%v", "%own") + put("%own", "%v"), programs=2)[1] == {"race between programs"}
    assert run(get("%v", "%own") + put_shared("%shared", "%v"), programs=2)[1] == set()


def test_lanes_at_other_collectives_are_found() -> None:
    branch = BEFORE_ENTRY.format("%first") + WARP + "  br label %end\nno:\n"
    shuffle = "  %s = call i32 @llvm.nvvm.shfl.sync.bfly.i32(i32 -1, i32 %t, i32 1, i32 31)\n  br label %end\nend:\n"
    assert "divergent collective" in run(branch + shuffle)[1]


def test_shared_memory_ends_where_the_kernel_says() -> None:
    ir, types = translate(HEAD + put_shared() + TAIL, "control")
    (found,) = Program("control", ir, types, 64, 252).run((1,), [torch.zeros(64, dtype=torch.int32)])
    assert (found.kind, found.count) == ("out of bounds", 1)
    assert "thread 63" in found.messages[0]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('  call void asm sideeffect "wgmma.fence.sync.aligned;", ""()\n', "wgmma"),
        ("  store i32 1, ptr addrspace(1) %own, align 4\n", "store i32 1"),
        ("  call void @llvm.nvvm.fence.proxy.async()\n", "fence.proxy.async"),
    ],
)
def test_what_is_not_executed_is_named(line: str, what: str) -> None:
    with pytest.raises(NotExecutedError, match=what):
        translate(HEAD + line + TAIL, "control")


@pytest.mark.parametrize("name", BLOCKS)
def test_a_buffer_declared_short_is_found(name: str) -> None:
    """Every launch touches the last element of some tensor."""

    def short(program: Program, grid: tuple[int, ...], values: list[Any]) -> tuple[Finding, ...]:
        before = [value.clone() if isinstance(value, torch.Tensor) else value for value in values]
        found = program.run(grid, before, short=1)
        assert "out of bounds" in {each.kind for each in found}
        return program.run(grid, values)

    configuration = next(each for each in FIXED if each.name == name and each.training and each.needs == "all")
    executor = Executor(configuration.targets, run=short)
    with executor.installed(), triton_attn.use_backend("triton"):
        results(configuration)
    assert executor.executed
    assert not executor.found


def test_a_barrier_left_out_is_found(request: pytest.FixtureRequest) -> None:
    """At least 85% of them. No order tells a kernel without one of the others from the whole: it has a second one.

    Of one in seven; --every-case leaves out each, and so does ``python -m tests.execute``.
    """
    every = 1 if request.config.getoption("--every-case") else 7
    made = [mutant for name in BLOCKS for mutant in mutants(name, every)]
    assert sum(mutant.is_found for mutant in made) >= 0.85 * len(made) > 0
    assert not [mutant for mutant in made if mutant.differs and not mutant.is_found]
