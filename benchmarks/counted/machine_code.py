"""Compiling the kernels for GPUs that are not there, and reading what came out.

The launches are the library's own: an op runs on meta tensors, which have shapes and strides but no data, and every
launch is written down in place of being started. So what is compiled is what a GPU would run at those shapes.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counted.occupancy import CHIPS, SHARED_LIMIT, occupancy

__all__ = ["SHARED_LIMIT", "TARGETS", "Launch", "Report", "block_launches", "compiled", "launches_of", "served_blocks"]

TARGETS = tuple(CHIPS)
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, what its compilation depends on, and which of its arguments are maps, by their names."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    reads: tuple[str, ...] = field(default=(), compare=False)
    writes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__

    def __reduce__(self) -> Any:
        """For other processes: a kernel does not travel, but its module and name do."""
        rest = (self.signature, self.constants, self.divisible, self.options, self.reads, self.writes)
        return _launch, (self.kernel.fn.__module__, self.name, *rest)


def _launch(module: str, name: str, *rest: Any) -> Launch:
    return Launch(getattr(importlib.import_module(module), name), *rest)


@dataclass(frozen=True)
class Report:
    """What a kernel became on one target. Bytes, registers per thread, and accesses by width in bytes.

    ``num_warps`` of them (wavefronts on AMD) make a program; ``tensor_cores`` counts instructions, not their runs.
    """

    target: str
    num_warps: int
    registers: int
    spilled: int
    shared: int
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    tensor_cores: int

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's warps that may be there at once, by registers, shared memory and warps."""
        return occupancy(self.target, self.num_warps, self.registers, self.shared)

    @property
    def widest_load(self) -> int:
        """The widest load from global memory."""
        return max(self.loads, default=0)

    @property
    def widest_store(self) -> int:
        """The widest store to global memory."""
        return max(self.stores, default=0)


def block_launches(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    with_shortcut: bool,
    training: bool = True,
    gating: tuple[int, ...] | None = None,
    target: str | None = None,
    behind_norm: bool = False,
    **arguments: Any,
) -> list[Launch]:
    """The distinct launches of a training step of a block, or of its inference; none where Triton does not serve it.

    Args:
        name: one of ``triton_attn.list_attention()``.
        shape: of the map, whose every input and parameter is to have a gradient in training.
        dtype, memory_format: of the map, and the dtype of the parameters.
        with_shortcut: whether the tail of a residual block is behind it.
        training: forward and backward, or else the forward without gradients.
        gating: the shape of the attention gate's own signal.
        target: the GPU that the launches are for, where they go by it.
        behind_norm: whether a batch norm is in front, which the block takes in.
        **arguments: the block's own (``reduction``, ``kernel_size`` …).
    """
    import triton_attn
    from triton_attn.tuning import chips

    def make(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory_format)

    inputs, grad = {"x": make(shape)}, make(shape)
    if with_shortcut:
        inputs["shortcut"] = make(shape)
    if gating is not None:
        inputs["gating"] = make(gating)
        arguments["gating_channels"] = gating[1]
    inputs = {key: t.requires_grad_(training) for key, t in inputs.items()}
    block: Any = triton_attn.create_attention(name, shape[1], device="meta", dtype=dtype, **arguments)

    norm = torch.nn.BatchNorm2d(shape[1], device="meta", dtype=dtype).train(training) if behind_norm else None
    leaves = [*inputs.values(), *block.parameters(), *(norm.parameters() if norm is not None else ())]

    def step() -> None:
        with torch.set_grad_enabled(training):
            y = block(**inputs) if norm is None else block.behind(norm, inputs["x"], inputs.get("shortcut"))
        if training:
            torch.autograd.grad(y, leaves, grad)

    with serving_meta_tensors(), chips.assume(chips.CHIPS[target]) if target else contextlib.nullcontext():
        # Half a map's size may be a map of half its channels.
        return launches_of(step, lambda t: 2 * t.numel() >= grad.numel())


def served_blocks() -> list[str]:
    """The names of the blocks that have kernels."""
    import triton_attn

    x = torch.empty(1, 64, 8, 8, device="meta")
    with serving_meta_tensors():
        blocks = {name: triton_attn.create_attention(name, 64, device="meta") for name in triton_attn.list_attention()}
        return [name for name, block in blocks.items() if triton_attn.explain(block, x)[0].backend == "triton"]


def serving_meta_tensors() -> Any:
    """Within this, blocks take meta tensors for tensors on a GPU that Triton serves."""
    from triton_attn import backend

    return mock.patch.object(backend, "_obstacle", return_value=None)


class _WriteDown(TorchDispatchMode):
    """Writes launches down, with the maps each reads and writes.

    On meta tensors an op of ours would run its fake: here it runs what it runs on a GPU. What an operator of PyTorch
    computed, or a launch before, is read; the first launch that is given an empty tensor writes it.
    """

    def __init__(self, is_map: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.is_map = is_map
        self.launches: dict[Launch, None] = {}
        self.empty: dict[int, torch.Tensor] = {}  # by storage, and kept alive: another must not take its place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from triton_attn.ops.library import IMPLEMENTATIONS

        if func in IMPLEMENTATIONS:
            with self:
                return IMPLEMENTATIONS[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if "empty" in func._schema.name:
            self.empty[result.untyped_storage()._cdata] = result
        return result

    def start(self, kernel: Any, grid: tuple[int, ...], _: torch.device, **arguments: Any) -> None:
        if 0 in grid:
            return
        storages = {
            name: t.untyped_storage()._cdata
            for name, t in arguments.items()
            if isinstance(t, torch.Tensor) and self.is_map(t)
        }
        self.launches.setdefault(
            replace(
                specialised(kernel, arguments),
                reads=tuple(name for name, storage in storages.items() if storage not in self.empty),
                writes=tuple(name for name, storage in storages.items() if storage in self.empty),
            )
        )
        for t in arguments.values():
            if isinstance(t, torch.Tensor):
                self.empty.pop(t.untyped_storage()._cdata, None)


def launches_of(
    run: Callable[[], Any], is_map: Callable[[torch.Tensor], bool] = lambda t: t.dim() == 4
) -> list[Launch]:
    """The distinct launches that ``run`` makes, none of which is started. Its tensors may be on the meta device.

    ``is_map`` says of a kernel's tensor whether it is a feature map.
    """
    from triton_attn.ops import launch

    seen = _WriteDown(is_map)
    with mock.patch.object(launch, "start", seen.start), seen:
        run()
    return list(seen.launches)


def specialised(kernel: Any, arguments: dict[str, Any]) -> Launch:
    """What Triton makes of a launch's arguments: ones are constants, and multiples of 16 are known as such."""
    unspecialised = set(getattr(kernel, "do_not_specialize", None) or ())
    parameters = {parameter.name for parameter in kernel.params}
    options = tuple((key, value) for key, value in arguments.items() if key not in parameters)
    signature, constants, divisible = [], [], []
    for parameter in kernel.params:
        name = parameter.name
        value = arguments.get(name, parameter.default)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if parameter.is_constexpr or value is None or (is_integer and value == 1 and name not in unspecialised):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((name, POINTERS[value.dtype]))
            if value.storage_offset() * value.itemsize % 16 == 0:  # PyTorch allocates at 16 bytes or more
                divisible.append(name)
        elif isinstance(value, bool):
            signature.append((name, "u1"))
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % 16 == 0 and name not in unspecialised:
                divisible.append(name)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), options)


def promised() -> bool:
    """Whether this Triton's compiler is one of which no spills and whole words are promised: 3.6 and up."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)


class TargetError(RuntimeError):
    """Triton cannot compile for a target here; the message says why."""


@cache
def obstacle(target: str) -> str | None:
    """Why Triton cannot compile for a target here, or None."""
    if target.startswith("sm_"):
        return None
    from triton.backends.amd.compiler import HIPBackend

    if not hasattr(HIPBackend, "path_to_rocm_lld"):
        return None  # behind Triton 3.4 it brings a linker of its own
    try:
        HIPBackend.path_to_rocm_lld()
    except Exception as error:
        return f"{target}: {error}"
    return None


@cache
def compiled(launch: Launch, target: str) -> Report:
    """Compile a launch for ``target`` and read its resources and accesses."""
    import triton

    source, options, gpu = source_of(launch, target)
    binary = triton.compile(source, target=gpu, options=options)
    read, code = (_read_cubin, "cubin") if "cubin" in binary.asm else (_read_amdgcn, "amdgcn")
    return read(target, binary.asm[code], binary.metadata.num_warps, binary.metadata.shared)


def source_of(launch: Launch, target: str) -> tuple[Any, dict[str, Any], Any]:
    """What Triton compiles for a launch on ``target``: the source, the options and the GPU.

    Raises:
        TargetError: it cannot.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from triton_attn.ops.launch import register_limit

    if why := obstacle(target):
        raise TargetError(why)
    names = [name for name, _ in launch.signature]
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    options = dict(launch.options)
    if target.startswith("sm_"):
        options["maxnreg"] = register_limit(options.get("num_warps", 4))
        return source, options, GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    return source, options, GPUTarget("hip", target, 64)


def _read_cubin(target: str, cubin: bytes, num_warps: int, shared: int) -> Report:
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "-res-usage", "-sass", str(path)]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = int(re.search(r"\bREG:(\d+)", code).group(1))  # type: ignore[union-attr]
    local = re.search(r"\bLOCAL:(\d+)", code)
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return Report(
        target,
        num_warps,
        registers,
        spills + (int(local.group(1)) if local else 0),
        shared,
        _widths(code, r"\b(?:LDG|LDGSTS)\.[\w.]*"),
        _widths(code, r"\bSTG\.[\w.]*"),
        # Ampere's, Hopper's and Blackwell's names.
        len(re.findall(r"\b(?:[BDHIOQ]MMA|[BHIQ]GMMA|UTC\w*MMA)\b", code)),
    )


def _widths(code: str, instruction: str) -> tuple[int, ...]:
    widths = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2, "256": 32}
    found = []
    for match in re.findall(instruction, code):
        parts = match.split(".")
        found.append(next((widths[part] for part in parts if part in widths), 4))
    return tuple(sorted(found))


def _read_amdgcn(target: str, code: str, num_warps: int, shared: int) -> Report:
    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s*(\d+)", code).group(1))  # type: ignore[union-attr]

    widths = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "ubyte": 1, "byte": 1}

    def accesses(kind: str) -> tuple[int, ...]:
        found = re.findall(rf"(?:global|buffer)_{kind}_(dwordx[234]|dword|[us]?short|[us]?byte)", code)
        return tuple(sorted(widths[name.replace("sshort", "short").replace("sbyte", "byte")] for name in found))

    return Report(
        target,
        num_warps,
        number("vgpr_count"),
        number("private_segment_fixed_size"),  # scalar registers spill into a vector register's lanes, not to memory
        shared,
        accesses("load"),
        accesses("store"),
        len(re.findall(r"\bv_s?mfma\w*", code)),
    )
