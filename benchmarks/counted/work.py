"""What every launch of a block has to do, counted without a GPU: bytes, products, rounds of loads, programs.

The block runs on meta tensors, where its launches and PyTorch's operators are written down with what they are given.
Then a few programs of every launch run under Triton's interpreter, on zeros of those shapes: a program's work is the
same for other values, and the rest of the grid is like those. Two processes see the same steps: here the interpreter
counts, and where kernels are compiled (``predicted.py``) registers and shared memory join by the steps' order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.counted.meter import Seeing

AT_ONCE = 8 * 132  # programs of a grid that may fit on a chip side by side
SAMPLED = 8  # programs of a grid: scattered, since the last ones of a row often have less to do
GOLDEN = 0.6180339887
SECTOR = 32
OPERATORS = [f"{side}{name}" for name in ("add", "sub", "mul", "truediv") for side in ("", "r")]
OPERATORS += ["gt", "ge", "lt", "le", "eq", "ne"]


@dataclass
class Step:
    """A launch of ours, or an operator of PyTorch's (without ``kernel``).

    ``touched`` has a tensor's number, its bytes, those that all programs ask for, and whether it is written. Products
    are multiply-adds by ``tl.dot``; operations are those on floats elsewhere, element by element. A program's
    ``rounds`` are the loads that wait for one another, ``meetings`` its sums and maxima, for which its warps wait; they
    are the longest program's where a chip takes all at once, else the mean.
    """

    name: str
    programs: int = 0
    warps: int = 0
    touched: list[tuple[int, int, int, bool]] = field(default_factory=list)
    products: int = 0
    operations: int = 0
    summed: int = 0
    rounds: float = 0.0
    meetings: float = 0.0
    launches: int = 1
    backward: bool = False
    registers: int = 0
    shared: int = 0
    kernel: Any = field(default=None, repr=False, compare=False)
    arguments: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


class Steps(Seeing):
    """Writes down, on meta tensors, what a run starts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Step] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # a storage's address must not be another's later

    def number(self, t: Tensor) -> int:
        """A tensor's, which is its storage's."""
        self._kept.append(t)
        return self._numbers.setdefault(t.untyped_storage()._cdata, len(self._numbers))

    def start(self, kernel: Any, grid: tuple[int, ...], _: torch.device, **arguments: Any) -> None:
        """In ``launch.start``'s place."""
        if 0 not in grid:
            step = Step(kernel.fn.__name__, prod(grid), arguments.get("num_warps", 4))
            step.kernel, step.arguments = kernel, {**arguments, "grid": grid}
            step.touched = [(self.number(t), t.nbytes, 0, False) for t in _tensors(arguments)]
            self.found.append(step)

    def see(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        from torch.utils.flop_counter import flop_registry

        # What is made, and what is changed, but not a view: an ``out`` is written, and not read.
        given = {name for name, value in kwargs.items() if name in _outs(func)}
        read = {self.number(t): t for t in _tensors((args, {name: kwargs[name] for name in {*kwargs} - given}))}
        made = {self.number(t): t for t in _tensors(result) if t.numel()}
        written = made if given else {n: t for n, t in made.items() if (n in read) == func._schema.is_mutable}
        if "empty" not in func._schema.name and written:
            name = func._schema.name.removeprefix("aten::")
            step = Step(name, touched=[(number, t.nbytes, t.nbytes, False) for number, t in read.items()])
            step.touched += [(number, t.nbytes, t.nbytes, True) for number, t in written.items()]
            if "addmm" in name:  # of whose kinds PyTorch's counter knows one
                step.products = flop_registry[torch.ops.aten.addmm](*args[:3], out_val=result) // 2
            elif (flops := flop_registry.get(func._overloadpacket)) is not None:
                step.products = flops(*args, **kwargs, out_val=result) // 2
            # A convolution's bias is added and summed by kernels of their own, and each gradient is one.
            step.launches = len(written) + (name == "convolution" and args[2] is not None)
            self.found.append(step)


def _outs(func: Any) -> set[str]:
    """The arguments that an operator writes its results to."""
    return {each.name for each in func._schema.arguments if each.is_out}


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def steps(name: str, shape: tuple[int, ...], training: bool = True) -> list[Step]:
    """What a block starts on a map of this shape, in bfloat16 and channels_last, forward and backward."""
    import triton_attn
    from triton_attn import backend
    from triton_attn.ops import launch
    from triton_attn.tuning import chips

    def make() -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta").contiguous(memory_format=torch.channels_last)

    x, grad = make().requires_grad_(training), make()
    block = triton_attn.create_attention(name, shape[1], device="meta", dtype=torch.bfloat16)
    seen = Steps()
    with (
        mock.patch.object(backend, "_obstacle", return_value=None),
        mock.patch.object(launch, "start", seen.start),
        chips.assume(chips.CHIPS["sm_90"]),
        seen,
        torch.set_grad_enabled(training),
    ):
        y = block(x)
        forward = len(seen.found)
        if training:
            torch.autograd.grad(y, [x, *block.parameters()], grad)
    for step in seen.found[forward:]:
        step.backward = True
    return seen.found


def counted(name: str, shape: tuple[int, ...]) -> list[Step]:
    """The steps with their programs' work; Triton's interpreter must be on."""
    found = steps(name, shape)
    for step in found:
        if step.kernel is not None:
            _count(step)
        step.kernel, step.arguments = None, {}
    return found


def _count(step: Step) -> None:
    from triton.runtime.interpreter import interpreter_builder

    from benchmarks.counted.interpreter import patch_once_a_launch

    patch_once_a_launch()
    arguments = {key: _zeros(value) for key, value in step.arguments.items()}
    grid = (*arguments.pop("grid"), 1, 1)[:3]
    tensors = [t for t in arguments.values() if isinstance(t, Tensor)]
    given = {t.data_ptr(): touched[:2] for t, touched in zip(tensors, step.touched, strict=True)}
    beside = arguments.get("beside", 0)  # the first programs are of another kind
    chosen = [*_sampled(0, beside), *_sampled(beside, step.programs)]
    move, dimensions = interpreter_builder.set_grid_idx, interpreter_builder.set_grid_dim

    def run(number: int) -> _Program:
        program, index = _Program(), tuple(int(i) for i in np.unravel_index(number, grid))

        def set_index(*_: int) -> None:
            move(*index)

        def set_dimensions(*_: int) -> None:
            dimensions(*grid)

        with (
            program.watching(),
            mock.patch.object(interpreter_builder, "set_grid_idx", set_index),
            mock.patch.object(interpreter_builder, "set_grid_dim", set_dimensions),
        ):
            step.kernel[(1,)](**arguments)
        return program

    programs = [(run(number), share) for number, share in chosen]
    spans = sorted(given)
    asked: dict[tuple[int, bool], float] = defaultdict(float)
    for program, share in programs:
        for address, size, written in program.accesses:
            asked[spans[bisect_right(spans, address) - 1], written] += size * share
    step.touched = [(*given[at], round(total), written) for (at, written), total in asked.items()]
    for name in ("products", "operations", "summed"):
        setattr(step, name, round(sum(getattr(program, name) * share for program, share in programs)))
    longest = [*(program for program, _ in programs), run(step.programs - 1)]  # whose kind may be rare, and last
    for name in ("rounds", "meetings"):
        mean = sum(getattr(program, name) * share for program, share in programs) / step.programs
        most = max(getattr(program, name) for program in longest)
        setattr(step, name, float(most) if step.programs <= AT_ONCE else mean)


def _sampled(begin: int, end: int) -> list[tuple[int, float]]:
    """Programs from ``begin`` to ``end``, spread over them, and how many each stands for."""
    size, few = end - begin, range(min(end - begin, SAMPLED))
    found = few if size <= SAMPLED else {int((0.5 + i * GOLDEN) % 1 * size) for i in few}
    return [(begin + number, size / len(found)) for number in found]


def _zeros(value: Any) -> Any:
    """A tensor of zeros in a meta tensor's place, which takes no memory until it is written."""
    if not isinstance(value, Tensor):
        return value
    needed = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return torch.zeros(max(needed, 1), dtype=value.dtype).as_strided(value.shape, value.stride())


class _Program:
    """What the programs that run meanwhile ask for."""

    def __init__(self) -> None:
        self.accesses: list[tuple[int, int, bool]] = []
        self.products = self.operations = self.summed = self.rounds = self.meetings = 0
        self.round_open = self.in_operator = False

    def _access(self, pointers: Any, mask: Any, written: bool) -> None:
        addresses = pointers.data
        if mask is not None:
            addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
        if addresses.size:
            sectors = np.unique(addresses // SECTOR).size * SECTOR
            self.accesses.append((int(addresses.min()), sectors, written))
            if not written:
                self.rounds += not self.round_open
                self.round_open = True

    def _compute(self, size: int) -> None:
        self.operations += size
        if size > 1:
            self.round_open = False

    def watching(self) -> ExitStack:
        """Within this, what the interpreter does is counted."""
        from triton.language import core
        from triton.runtime import interpreter

        builder, tensor, stack = interpreter.InterpreterBuilder, core.tensor, ExitStack()
        own = {name: getattr(builder, name) for name in ("create_masked_load", "create_masked_store", "create_dot")}
        own |= {name: getattr(builder, name) for name in ("binary_op", "unary_op", "ternary_op")}
        reduce = interpreter.ReduceOps.apply_impl

        def load(this: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self._access(pointers, mask, False)
            return own["create_masked_load"](this, pointers, mask, *rest)

        def store(this: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._access(pointers, mask, True)
            return own["create_masked_store"](this, pointers, value, mask, *rest)

        def dot(this: Any, a: Any, b: Any, *rest: Any) -> Any:
            self.products += a.data.size * b.data.shape[-1]
            self.round_open = False
            return own["create_dot"](this, a, b, *rest)

        def summed(this: Any, values: Any) -> Any:
            if this.axis is None or values[0].handle.data.shape[this.axis] > 1:  # one by itself is there already
                self.meetings += 1
                self.summed += values[0].handle.data.size
                self.round_open = False
            return reduce(this, values)

        def computed(name: str) -> Callable[..., Any]:
            def compute(this: Any, *rest: Any) -> Any:
                result = own[name](this, *rest)
                if not self.in_operator and result.dtype.is_floating():
                    self._compute(result.data.size)
                return result

            return compute

        def operator(name: str) -> Callable[..., Any]:
            """The language's operators may go to NumPy, or to the builder."""
            apply = getattr(tensor, name)

            def compute(left: Any, *rest: Any, **more: Any) -> Any:
                with mock.patch.object(self, "in_operator", True):
                    result = apply(left, *rest, **more)
                if left.dtype.is_floating():
                    self._compute(result.handle.data.size)
                return result

            return compute

        stack.enter_context(mock.patch.object(interpreter.ReduceOps, "apply_impl", summed))
        for name, other in (("create_masked_load", load), ("create_masked_store", store), ("create_dot", dot)):
            stack.enter_context(mock.patch.object(builder, name, other))
        for name in ("binary_op", "unary_op", "ternary_op"):
            stack.enter_context(mock.patch.object(builder, name, computed(name)))
        for name in OPERATORS:
            stack.enter_context(mock.patch.object(tensor, f"__{name}__", operator(f"__{name}__")))
        return stack
