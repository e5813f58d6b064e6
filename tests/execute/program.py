"""A kernel as it was compiled for a GPU, on this CPU."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import llvmlite.binding as llvm
import torch
import triton
from triton import knobs
from triton.backends.nvidia.compiler import CUDABackend

from benchmarks.counted.machine_code import Launch, source_of

from .instructions import CONVERSIONS, FUNCTIONS
from .runtime import Finding, address_of, findings, library
from .translate import BARRIER, TRIPLE, translate, without_barrier

FORWARDS, BACKWARDS, DRAWN = range(3)


@dataclass(frozen=True)
class Order:
    """In which programs, warps and lanes run. A GPU promises none, so results must not go by it."""

    programs: int = FORWARDS
    warps: int = FORWARDS
    lanes: int = FORWARDS
    seed: int = 1


@cache
def _target() -> Any:
    """This CPU, with the runtime's functions known to the linker."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in (*FUNCTIONS, "global_smem"):
        llvm.add_symbol(name, address_of(name))
    for name, function in CONVERSIONS.items():
        llvm.add_symbol(name, address_of(function))
    mathematics = ctypes.CDLL("libm.so.6")
    for name in ("exp2f", "log2f", "fmaf", "fmaxf", "fminf", "floorf"):
        llvm.add_symbol(name, ctypes.cast(getattr(mathematics, name), ctypes.c_void_p).value)
    return llvm.Target.from_triple(TRIPLE)


IN_ORDER = Order()


class Program:
    """Machine code for this CPU.

    Attributes:
        kernel: its name.
        ir: what it was made of.
        barriers: how many it has, of those that all threads of a program reach.
    """

    def __init__(self, kernel: str, ir: str, types: Sequence[str], threads: int, shared: int) -> None:
        self.kernel, self.ir, self.types, self.threads, self.shared = kernel, ir, types, threads, shared
        self.barriers = ir.count(BARRIER)
        target = _target()
        module = llvm.parse_assembly(ir)
        module.verify()
        # An engine takes its machine along when it goes.
        machine = target.create_target_machine(opt=0, codemodel="large", jit=True)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self._entry = self._engine.get_function_address("entry")

    def without(self, barrier: int) -> Program:
        """The same without one of its barriers."""
        return Program(self.kernel, without_barrier(self.ir, barrier), self.types, self.threads, self.shared)

    def run(
        self, grid: Sequence[int], values: Sequence[Any], order: Order = IN_ORDER, short: int = 0
    ) -> tuple[Finding, ...]:
        """Run it for every program of ``grid``, on tensors and numbers; ``short`` bytes of each tensor are none of it.

        Returns:
            What a GPU would punish.
        """
        runtime, packed = library(), bytearray()
        runtime.rt_forget()
        for value, type_ in zip(values, self.types, strict=False):  # behind them come Triton's own
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if runtime.rt_buffer(storage.data_ptr(), max(storage.nbytes() - short, 0)):
                    raise ValueError("more tensors than the runtime knows")
                packed += struct.pack("<Q", value.data_ptr())
            else:
                packed += struct.pack("<fI", value, 0) if type_ == "float" else struct.pack("<q", int(value))
        packed += bytes(8 * (len(self.types) - len(values)))
        arguments = (ctypes.c_char * len(packed)).from_buffer(packed)
        x, y, z = (*grid, 1, 1)[:3]
        where = ctypes.cast(arguments, ctypes.c_void_p)
        orders = order.programs, order.warps, order.lanes, order.seed
        if runtime.rt_run(self._entry, where, x, y, z, self.threads, self.shared, *orders):
            raise ValueError(f"{self.threads} threads with {self.shared} bytes of shared memory: too much to run")
        return findings()


@cache
def program_of(launch: Launch, target: str) -> Program:
    """What Triton compiles for a launch on ``target``.

    Raises:
        NotExecutedError: it has an instruction that is not executed here.
    """
    source, options, gpu = source_of(launch, target)
    with _as_far_as_llvm():
        binary = triton.compile(source, target=gpu, options=options)
    name = launch.kernel.fn.__name__
    ir, types = translate(binary.asm["llir"], name)
    return Program(name, ir, types, 32 * binary.metadata.num_warps, max(binary.metadata.shared, 0))


@contextlib.contextmanager
def _as_far_as_llvm() -> Iterator[None]:
    """Within this Triton leaves out its assembler, a third of its time, and keeps what it makes apart."""
    plain = CUDABackend.add_stages

    def nothing(_: str, metadata: dict[str, Any]) -> bytes:
        metadata["name"] = "not assembled"
        return b""

    def add_stages(self: CUDABackend, stages: dict[str, Any], *rest: Any) -> None:
        plain(self, stages, *rest)
        del stages["ptx"]
        stages["cubin"] = nothing

    with mock.patch.object(CUDABackend, "add_stages", add_stages), knobs.cache.scope():
        knobs.cache.dir = str(Path(knobs.cache.dir) / "as-far-as-llvm")
        yield
