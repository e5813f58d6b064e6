"""Plans: what a call of a launcher allocates and starts, written down at the first call of a kind, played at the next.

A plan is made by running the launcher once under a :class:`Recorder`, which compiles what it would start and notes
where every pointer comes from. Played, it allocates, and hands Triton's compiled kernels their arguments: nothing of
the launcher's Python runs again, nor Triton's own search for the kernel. Operators of PyTorch's that write into what
they are given (a product with ``out=``) are steps of a plan too. What it cannot say (an operator that allocates what it
computes, a copy) is not planned, and its launcher runs at every call.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import launch

Results = Sequence[Tensor | None]
MULTIPLE = 16  # of bytes: Triton compiles another kernel for addresses that are none of it
ALIGNMENT = 128  # of what lies in scratch: more than any kernel is specialised on
# Operators of PyTorch's that a plan calls; those that write into one of their arguments.
CALLS = {"bmm", "mm", "addmm", "addmm_", "_addmm_activation", "cat", "copy_", "sum", "threshold_backward", "zero_"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class NotPlannedError(Exception):
    """This call does what no plan can say."""


class Launch(NamedTuple):
    """A compiled kernel, its grid, and what it is given."""

    compiled: Any
    grid: tuple[int, ...]
    given: list[Any]


class Call(NamedTuple):
    """An operator of PyTorch's, and what it is given."""

    function: Callable[..., Any]
    given: list[Any]


class Recorder(TorchDispatchMode):
    """Sees what a launcher allocates, what it views, and what it starts."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.new: list[Tensor] = []
        self.steps: list[Launch | Call] = []
        # Where a tensor lies: in which input or which allocation, and how many bytes behind its beginning. By identity,
        # so that one tensor given twice stays two inputs; what was seen is kept, so that no identity comes twice.
        self._places: dict[int, tuple[str, int, int]] = {}
        self._seen: list[Tensor] = []
        for i, each in enumerate(inputs):
            self._put(each, ("input", i, 0))

    def _put(self, t: Tensor, place: tuple[str, int, int]) -> None:
        self._places[id(t)] = place
        self._seen.append(t)

    def place(self, t: Tensor) -> tuple[str, int, int]:
        """``"input"`` or ``"new"``, which of them, and the offset in bytes."""
        if id(t) not in self._places:
            raise NotPlannedError("a tensor from elsewhere")
        return self._places[id(t)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            return self._call(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, (Tensor, list, tuple)) or id(out) in self._places:
            return out  # a question, or what was given
        name, source = func._schema.name.partition("::")[2], args[0] if args else None
        if name in ALLOCATIONS and isinstance(out, Tensor):
            self._put(out, ("new", len(self.new), 0))
            self.new.append(out)
        elif func.is_view and isinstance(source, Tensor):
            for view in (out,) if isinstance(out, Tensor) else out:
                kind, index, offset = self.place(source)
                step = view.storage_offset() * view.itemsize - source.storage_offset() * source.itemsize
                self._put(view, (kind, index, offset + step))
        else:
            raise NotPlannedError(f"it calls {name}")
        return out

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Write down an operator that writes into one of its arguments, in place of calling it."""
        if func._schema.name.partition("::")[2] not in CALLS:
            raise NotPlannedError(f"it calls {func}")
        name = next((each.name for each in func._schema.arguments if each.is_out), None)
        if name is None:
            self.steps.append(Call(partial(func, **kwargs), [*args]))
            return args[0]
        out: Tensor = kwargs[name]
        function = partial(func, **{key: value for key, value in kwargs.items() if key != name})
        if isinstance(args[0], (list, tuple)):
            many, *others = args
            self.steps.append(Call(lambda *given: function(given[:-1], *others, **{name: given[-1]}), [*many, out]))
        else:
            self.steps.append(Call(lambda *given: function(*given[:-1], **{name: given[-1]}), [*args, out]))
        return out

    def start(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        """Compile and write down, in place of starting."""
        if not hasattr(kernel, "device_caches"):
            raise NotPlannedError("an interpreter")
        compiled = kernel.run(grid=grid, warmup=True, **arguments, **options)
        if not hasattr(compiled, "packed_metadata"):
            raise NotPlannedError("an asynchronous compilation")
        self.steps.append(Launch(compiled, (*grid, 1, 1)[:3], self._given(kernel, arguments)))

    @staticmethod
    def _given(kernel: Any, arguments: dict[str, Any]) -> list[Any]:
        return [arguments.get(each.name, each.default) for each in kernel.params]


class Plan:
    """Allocations, launches and calls with everything fixed but addresses."""

    __slots__ = (
        "_compiled",
        "_constants",
        "_derived",
        "_empties",
        "_empty",
        "_index",
        "_others",
        "_parts",
        "_scratch",
        "_views",
        "_wants",
        "backwards",
    )

    def __init__(self, recorder: Recorder, inputs: Sequence[Tensor], results: Results, device: torch.device) -> None:
        self._empty = _allocator(device)
        # Of this forward, by their gradients.
        self.backwards: dict[Any, Plan] = {}
        # None where there is no device to be made the current one.
        self._index = device.index if device.type == "cuda" else None
        launches = [step for step in recorder.steps if isinstance(step, Launch)]
        self._compiled = [each.compiled for each in launches]  # which their launches need alive
        own = self._plan_results(recorder, results)
        calls = iter(self._plan_calls(recorder, own, inputs))
        pool = iter(self._plan_pool(recorder, launches, own, len(inputs)))
        # Launches, and the call that follows them. What each is given, by its index among all that may be given.
        self._parts: list[tuple[list[Any], Any, Any]] = [([], None, None)]
        for step in recorder.steps:
            if isinstance(step, Call):
                self._parts[-1] = (self._parts[-1][0], step.function, next(calls))
                self._parts.append(([], None, None))
                continue
            compiled, grid, arguments = step
            self._parts[-1][0].append((compiled, grid, itemgetter(*next(pool)), *starter(compiled, grid, arguments)))
        if launches and _Driver.stream is None:
            from triton import knobs
            from triton.runtime import driver

            _Driver.stream, _Driver.runtime = driver.active.get_current_stream, knobs.runtime

    def _plan_results(self, recorder: Recorder, results: Results) -> dict[int, int]:
        """Lays down what is returned: which allocations are tensors of their own, and which result is what of these."""
        own: dict[int, int] = {}
        self._empties: list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]] = []
        self._wants: list[Any] = []
        for each in results:
            if each is None:
                self._wants.append(None)
                continue
            kind, index, offset = recorder.place(each)
            if kind != "new" or recorder.new[index].dtype != each.dtype:
                raise NotPlannedError("a result that is an input, or of another dtype than it was allocated in")
            whole = recorder.new[index]
            if index not in own:
                # Allocated in the result's own shape where that is all of it.
                if each.numel() == whole.numel() and each.is_contiguous() and whole.is_contiguous():
                    whole = each
                own[index] = len(self._empties)
                self._empties.append((tuple(whole.shape), whole.stride(), whole.dtype))
            at = own[index]
            is_whole = self._empties[at][:2] == (tuple(each.shape), each.stride()) and not offset
            self._wants.append(at if is_whole else (at, tuple(each.shape), each.stride(), offset // each.itemsize))
        return own

    def _plan_calls(self, recorder: Recorder, own: dict[int, int], inputs: Sequence[Tensor]) -> list[list[int]]:
        """Lays down what calls are given, and for each which of it. What they work on is a tensor of its own.

        There are the inputs, the tensors of their own, views of these, and everything that is no tensor.
        """
        calls = [step for step in recorder.steps if isinstance(step, Call)]
        self._views: list[tuple[int, tuple[int, ...], tuple[int, ...], int]] = []
        self._others: list[Any] = []

        def of(argument: Any) -> tuple[str, int]:
            if not isinstance(argument, Tensor):
                self._others.append(argument)
                return "other", len(self._others) - 1
            kind, index, offset = recorder.place(argument)
            base = inputs[index] if kind == "input" else recorder.new[index]
            if base.dtype != argument.dtype:
                raise NotPlannedError("a view of another dtype")
            if kind == "input":
                at, whole = index, (tuple(base.shape), base.stride())
            else:
                if index not in own:
                    own[index] = len(self._empties)
                    self._empties.append((tuple(base.shape), base.stride(), base.dtype))
                at, whole = len(inputs) + own[index], self._empties[own[index]][:2]
            own_view = tuple(argument.shape), argument.stride()
            if not offset and whole == own_view:
                return "whole", at
            view = (at, *own_view, offset // base.itemsize)
            if view not in self._views:
                self._views.append(view)
            return "view", self._views.index(view)

        given = [[of(each) for each in step.given] for step in calls]
        first = {"whole": 0, "view": len(inputs) + len(self._empties)}
        first["other"] = first["view"] + len(self._views)
        return [[first[kind] + index for kind, index in each] for each in given]

    def _plan_pool(
        self, recorder: Recorder, launches: Sequence[Launch], own: dict[int, int], inputs: int
    ) -> list[list[int]]:
        """Lays down what launches are given, and for each which of it: the arguments by their indices in the pool.

        The pool is the addresses of the inputs, of the tensors of their own and of scratch, then those that lie a fixed
        distance behind one of these, then everything that is no address.
        """
        scratch: dict[int, int] = {}
        self._scratch = 0
        self._derived: list[tuple[int, int]] = []
        self._constants: list[Any] = []
        outs = len(self._empties)

        def of(argument: Any) -> tuple[str, int]:
            if not isinstance(argument, Tensor) or not argument.numel():
                # An empty tensor's address is 0.
                self._constants.append(0 if isinstance(argument, Tensor) else argument)
                return "constant", len(self._constants) - 1
            kind, index, offset = recorder.place(argument)
            if kind == "input":
                base = index
            elif index in own:
                base = inputs + own[index]
            else:
                if index not in scratch:
                    scratch[index] = self._scratch
                    self._scratch += -(-recorder.new[index].untyped_storage().nbytes() // ALIGNMENT) * ALIGNMENT
                base, offset = inputs + outs, offset + scratch[index]
            if not offset:
                return "base", base
            if (base, offset) not in self._derived:
                self._derived.append((base, offset))
            return "derived", self._derived.index((base, offset))

        given = [[of(each) for each in arguments] for *_, arguments in launches]
        first = {"base": 0, "derived": inputs + outs + 1}
        first["constant"] = first["derived"] + len(self._derived)
        return [[first[kind] + index for kind, index in each] for each in given]

    def play(self, addresses: list[int], arguments: Sequence[Any]) -> list[Tensor | None]:
        """Allocate, start and call, on the tensors among ``arguments``; returns what the launcher would."""
        if self._index is not None and _current_device() != self._index:
            with torch.cuda.device(self._index):
                return self.play(addresses, arguments)
        empty = self._empty
        outs = [empty(shape, stride, dtype) for shape, stride, dtype in self._empties]
        scratch = empty((self._scratch,), (1,), torch.uint8) if self._scratch else None
        pool = [*addresses, *[t.data_ptr() for t in outs], 0 if scratch is None else scratch.data_ptr()]
        for base, offset in self._derived:
            pool.append(pool[base] + offset)
        pool += self._constants
        if len(self._parts) == 1:
            self._start(self._parts[0][0], pool)
        else:
            given = [*[each for each in arguments if isinstance(each, Tensor)], *outs]
            for at, shape, stride, offset in self._views:
                whole = given[at]
                given.append(whole.as_strided(shape, stride, whole.storage_offset() + offset))
            given += self._others
            for launches, call, picked in self._parts:
                self._start(launches, pool)
                if call is not None:
                    call(*[given[i] for i in picked])
        return [
            outs[want] if type(want) is int else None if want is None else outs[want[0]].as_strided(*want[1:])
            for want in self._wants
        ]

    def _start(self, launches: Sequence[Any], pool: list[Any]) -> None:
        if not launches:
            return
        stream = _Driver.stream(self._index or 0)
        enter, leave = _Driver.runtime.launch_enter_hook, _Driver.runtime.launch_exit_hook
        # Of late the hooks are chains, which may be empty.
        watched = getattr(enter, "calls", enter) or getattr(leave, "calls", leave)
        for compiled, grid, pick, start, rest, together in launches:
            arguments = pick(pool)
            if start is not None and not watched:
                if together:
                    start(*grid, stream, *rest, arguments)
                else:
                    start(*grid, stream, *rest, *arguments)
                continue
            given = (*grid, stream, compiled.function, compiled.packed_metadata)
            if watched:  # by a profiler
                compiled.run(*given, compiled.launch_metadata(grid, stream, *arguments), enter, leave, *arguments)
            else:
                compiled.run(*given, None, None, None, *arguments)


def starter(
    compiled: Any, grid: tuple[int, ...], arguments: Sequence[Any]
) -> tuple[Callable[..., Any] | None, tuple[Any, ...], bool]:
    """The C function by which Triton's launcher starts a kernel, what it is given between stream and arguments, and
    whether these come together, as one tuple, or one by one.

    The launcher puts this together at every call, though for a kernel without scratch memory nothing of it changes: it
    is called once with a function that writes it down. None where it does what was not foreseen.
    """
    run = compiled.run
    sizes = [getattr(run, f"{kind}_scratch_size", 0) for kind in ("global", "profile")]
    if not callable(getattr(run, "launch", None)) or any(sizes) or getattr(run, "gsan_enabled", False):
        return None, (), False
    seen: list[tuple[Any, ...]] = []
    watched, stream, given = copy.copy(run), object(), tuple(object() for _ in arguments)
    watched.launch = lambda *all_of_it: seen.append(all_of_it)
    watched(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *given)
    first = (*grid, stream)
    if len(seen) != 1 or seen[0][: len(first)] != first:
        return None, (), False
    rest = seen[0][len(first) :]
    if rest[-1:] == (given,):
        return run.launch, rest[:-1], True
    if rest[-len(given) :] == given:
        return run.launch, rest[: -len(given)], False
    return None, (), False


def _allocator(device: torch.device) -> Callable[..., Tensor]:
    """A function of shape, strides and dtype that allocates on ``device``, which is the current one.

    PyTorch has one for the code that its compiler writes, which takes a third of the other's time.
    """
    own = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    return own or partial(_empty_strided, device)


def _empty_strided(device: torch.device, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


_current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", lambda: 0)


class _Driver:
    """What every play asks of Triton, which is imported with the first plan."""

    stream: Any = None
    runtime: Any = None


def make(run: Callable[..., Results], arguments: Sequence[Any]) -> Plan | None:
    """The plan of ``run`` for calls of this kind, or None where there can be none. It is not played yet."""
    # Aliases: the recorder tells tensors apart by identity.
    aliases = [each.detach() if isinstance(each, Tensor) else each for each in arguments]
    inputs = [each for each in aliases if isinstance(each, Tensor)]
    recorder = Recorder(inputs)
    try:
        # One at a time: a kernel that two threads load at once is handed to one of them half loaded.
        with _making, torch.no_grad(), launch.recording(recorder), recorder:
            results = run(*aliases)
        with _making:
            return Plan(recorder, inputs, results, inputs[0].device)
    except NotPlannedError:
        return None


_making = threading.RLock()
