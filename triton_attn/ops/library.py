"""Ops: what a block calls. Each is registered with PyTorch, for whoever traces, and called past it where nobody does.

An op is two launchers, forward and backward, and what autograd must know of them. Called eagerly, a launcher's second
call of a kind plays a :mod:`.plan`. Under ``torch.compile``, dispatch and function modes, for fake tensors and whatever
else watches or transforms operators, the registered op is called, whose fake says what comes out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backend
from ..tuning import selection
from . import launch, plan, schema

NAMESPACE = "triton_attn"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {}
"""What every registered op runs, for the meters to look into."""

Results = Sequence[Tensor | None]
Found = tuple[Any, list[int]]
PLANS = 4096  # of a launcher, and then anew: a network may be given images of ever other sizes
_Parameter = torch.nn.Parameter
_CACHES: list[dict[Any, Any]] = []


def forget() -> None:
    """Make all plans anew: launches would choose otherwise now."""
    for each in _CACHES:
        each.clear()


selection.on_change.append(forget)


def is_eager() -> bool:
    """Whether nothing traces, watches or transforms operators here, so that they may be passed by."""
    return is_untraced() and launch.is_direct()


def is_untraced() -> bool:
    """Whether no operator is traced or transformed here; launches may be watched."""
    return (
        not torch.compiler.is_compiling()
        and not _dispatch_modes()
        and (not _function_modes() or _only_a_default_device())
        and not _functorch()
        and forward_ad._current_level < 0
        and not _is_tracing()
    )


_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_precision = torch._C._get_float32_matmul_precision
_any_autocast = torch._C._is_any_autocast_enabled
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_functorch, _is_tracing = torch._C._are_functorch_transforms_active, torch._C._is_tracing


def _only_a_default_device() -> bool:
    """Whether the modes are ``torch.set_default_device``, which is one and touches no operator that has a device."""
    modes = (torch._C._get_function_stack_at(i) for i in range(_function_modes()))
    return all(type(mode).__name__ == "DeviceContext" for mode in modes)


class Launcher:
    """A function that allocates and starts kernels, registered as an op of PyTorch's, and played by plans.

    Args:
        name: the op's.
        run: takes tensors, or None for one that is not there, and constants, some of them in groups (:mod:`.schema`);
            returns tensors, or None for those that are not wanted, and fewer where those behind them are not. (The
            registered op returns an empty tensor for None: an op's results are tensors all.)
        fake: the same without data: results of the right shape, dtype, device and strides.
        results: how many there are.
    """

    def __init__(self, name: str, run: Callable[..., Results], fake: Callable[..., Results], results: int) -> None:
        parameters = schema.parameters_of(run)
        self.run = _of_length(results, schema.by_groups(run, parameters))
        self._plans: dict[Any, plan.Plan | None] = {}
        _CACHES.append(self._plans)
        _library.define(schema.schema_of(name, parameters, results))
        for key in ("CPU", "CUDA"):
            _library.impl(name, _tensors_all(self._below), key)
        whole_fake = _tensors_all(_of_length(results, schema.by_groups(fake, parameters)))
        torch.library.register_fake(f"{NAMESPACE}::{name}", whole_fake, lib=_library)
        self.registered = getattr(getattr(torch.ops, NAMESPACE), name).default
        IMPLEMENTATIONS[self.registered] = _tensors_all(self.run)

    def __call__(self, *arguments: Any) -> Results:
        """Run it, or play its plan, past autograd."""
        if is_eager() and (found := look_up(arguments)) is not None:
            return self._planned(found, arguments)
        if launch.is_recorded():  # a part of another launcher
            return self.run(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return [or_none(each) for each in self.registered(*arguments)]

    def _below(self, *arguments: Any) -> Results:
        """What the registered op does, all else being done: compiled networks play plans too."""
        found = look_up(arguments) if launch.is_direct() else None
        return self.run(*arguments) if found is None else self._planned(found, arguments)

    def _planned(self, found: Found, arguments: Sequence[Any]) -> Results:
        key, addresses = found
        known = self.plan(key, arguments)
        return self.run(*arguments) if known is None else known.play(addresses, arguments)

    def plan(self, key: Any, arguments: Sequence[Any]) -> plan.Plan | None:
        """The plan for calls of this kind, which is made where there is none yet; None where there can be none."""
        known = self._plans.get(key, _UNKNOWN)
        if known is _UNKNOWN:
            known = plan.make(self.run, arguments)
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = known
        return known


_UNKNOWN: Any = object()


def look_up(arguments: Sequence[Any]) -> Found | None:
    """What a plan is found by, and the tensors' addresses; None where they are not plain ones."""
    key: list[Any] = [_precision(), autocast() if _any_autocast() else ()]
    addresses: list[int] = []
    for each in arguments:
        kind = type(each)
        if kind is _Parameter or (kind is Tensor and not each.is_neg()):
            address = each.data_ptr()
            if not address and each.is_meta:
                return None
            addresses.append(address)
            key += each.shape, each.stride(), each.dtype, each.get_device()
            if address % plan.MULTIPLE:
                key.append(address % plan.MULTIPLE)
        elif each is None or not isinstance(each, Tensor):
            key.append(each)
        else:
            return None
    return tuple(key), addresses


def or_none(given: Tensor) -> Tensor | None:
    """None for the empty vector that stood for it."""
    return None if given.dim() == 1 and not given.shape[0] else given


def _of_length(results: int, run: Callable[..., Results]) -> Callable[..., Results]:
    """``run``, with None for each of the last results that it leaves out."""

    def whole(*arguments: Any) -> Results:
        found = run(*arguments)
        return (*found, *(None,) * (results - len(found)))

    return whole


def new_like(*tensors: Tensor | None, needed: bool = True) -> Results:
    """Room for the gradients of parameters, each like its own; None for those that there are not, or unneeded."""
    return [t.new_empty(t.shape) if needed and t is not None else None for t in tensors]


def _tensors_all(run: Callable[..., Results]) -> Callable[..., Any]:
    def tensors(*arguments: Any) -> Any:
        like = next(each for each in arguments if isinstance(each, Tensor))
        return tuple(like.new_empty(0) if each is None else each for each in run(*arguments))

    return tensors


class Op:
    """A differentiable op: a map and more in, a map out.

    Args:
        forward: of the op's tensors, the shortcut last, its constants, and whether anything is to be kept for a
            backward. Returns y, and what is kept, the bits of ReLU's mask last.
        backward: of y's gradient, the op's tensors but the shortcut, what was kept, the constants, and what ``needs``
            says. Returns what ``gradients`` takes: None for what is not needed, and for the gradient of a shortcut that
            there is not (no bits).
        tensors: how many the op has, the shortcut among them.
        formula: y of the op's tensors but the shortcut and of its constants, in plain PyTorch: what a backward is
            computed by that is itself to be differentiated.
        needs: what must be computed, from which tensors want a gradient.
        gradients: of the op's tensors, from what the backward returned and the tensors but the shortcut.
        mask: ReLU's mask like y's gradient, from its bits and the op's tensors but the shortcut.
        also: how many results behind y a call returns as well, of which there are no gradients.
    """

    def __init__(
        self,
        forward: Launcher,
        backward: Launcher,
        *,
        tensors: int,
        formula: Callable[..., Tensor],
        mask: Callable[..., Tensor],
        needs: Callable[[Sequence[bool]], tuple[bool, ...]] = tuple,
        gradients: Callable[[Results, Sequence[Tensor | None]], Results] = lambda found, _: found,
        also: int = 0,
    ) -> None:
        self.forward, self.backward, self.tensors, self.also = forward, backward, tensors, also
        self.formula, self.needs, self.gradients, self.mask = formula, needs, gradients, mask
        self._checked: dict[Any, plan.Plan] = {}
        _CACHES.append(self._checked)

        def autograd(*arguments: Any) -> Any:
            # The op's last argument says whether anything is to be differentiated; if not, autograd is left out.
            if arguments[-1]:
                return _Registered.apply(self, *arguments)
            with torch._C._AutoDispatchBelowAutograd():
                return forward.registered(*arguments)

        # At PyTorch's Autograd key itself: a third of what torch.library.register_autograd costs per call.
        _library.impl(forward.registered._schema.name.partition("::")[2], autograd, "Autograd")

    def __call__(self, *arguments: Any) -> Any:
        """y of tensors and constants that were checked, and are as the kernels take them; a tuple with what is also."""
        saves = self._saves(arguments)
        if not is_eager() or (found := look_up((*arguments, saves))) is None:
            y, *others = self.forward.registered(*arguments, saves)
            return (y, *map(or_none, others[: self.also])) if self.also else y
        key, addresses = found
        known = self.forward.plan(key, (*arguments, saves))
        if known is not None:
            if len(self._checked) >= PLANS:
                self._checked.clear()
            self._checked[key] = known
        return self._run(known, addresses, arguments, saves)

    def again(self, *arguments: Any) -> Any:
        """The same, if a call of this very kind was checked and served before; else None, and nothing has happened.

        What was checked then (shapes, dtypes, devices, strides) is what the plan was found by.
        """
        # Eager, first of all: what plans there are is nothing for a graph to depend on.
        if not is_eager() or not self._checked or not backend.is_open():
            return None
        saves = self._saves(arguments)
        if (found := look_up((*arguments, saves))) is None:
            return None
        known = self._checked.get(found[0])
        return None if known is None else self._run(known, found[1], arguments, saves)

    def _saves(self, arguments: Sequence[Any]) -> bool:
        if torch.is_grad_enabled():
            for each in arguments[: self.tensors]:
                if each is not None and each.requires_grad:
                    return True
        return False

    def _run(self, known: plan.Plan | None, addresses: list[int], arguments: Sequence[Any], saves: bool) -> Any:
        if saves:
            # One argument for all that is no tensor: autograd looks at each.
            return _Direct.apply((self, known, addresses, arguments), *arguments[: self.tensors])
        results = self.forward.run(*arguments, False) if known is None else known.play(addresses, arguments)
        return tuple(results[: 1 + self.also]) if self.also else results[0]

    def save(self, ctx: Any, arguments: Sequence[Any], y: Tensor | None, kept: Results) -> None:  # noqa: ARG002
        """Of the op's tensors and constants, of y and what was kept, what a backward wants."""
        ctx.op, ctx.constants = self, arguments[self.tensors :]
        keep(ctx, *arguments[: self.tensors - 1], *kept)
        ctx.autocast = autocast()

    def differentiate(self, ctx: Any, grad: Tensor | None, needs: Sequence[bool]) -> Results:
        """The gradients of the op's tensors, None for those that do not need one."""
        if grad is None or not any(needs):
            return (None,) * self.tensors
        saved = as_kept(ctx)
        if torch.is_grad_enabled():  # so create_graph is True
            return self._by_formula(ctx, grad, saved, needs)
        found = self._backward(ctx, grad, saved, self.needs(needs))
        given = self.gradients(found, saved[: self.tensors - 1])
        return [each if needed else None for each, needed in zip(given, needs, strict=True)]

    def _backward(self, ctx: Any, grad: Tensor, saved: Results, needs: tuple[bool, ...]) -> Results:
        """What the backward returns. Behind a forward that was played, a plan is found by the gradient alone."""
        if ctx.known is None or type(grad) is not Tensor or grad.is_neg() or not is_eager():
            return self.backward(grad, *saved, *ctx.constants, *needs)
        address = grad.data_ptr()
        key = grad.shape, grad.stride(), grad.dtype, grad.get_device(), address % plan.MULTIPLE, _precision(), needs
        known = ctx.known.backwards.get(key)
        if known is None:
            arguments = (grad, *saved, *ctx.constants, *needs)
            found = look_up(arguments)
            known = None if found is None else self.backward.plan(found[0], arguments)
            if known is None:
                return self.backward.run(*arguments)
            ctx.known.backwards[key] = known
        return known.play([address, *[each.data_ptr() for each in saved if each is not None]], (grad, *saved))

    def _by_formula(self, ctx: Any, grad: Tensor, saved: Sequence[Tensor | None], needs: Sequence[bool]) -> Results:
        bits = saved[-1]
        if bits is not None:
            grad = torch.where(self.mask(bits, *saved[: self.tensors - 1]), grad, 0.0)
        *of_tensors, of_shortcut = needs
        with _autocast_as(ctx.autocast):
            found = gradients_of(self.formula, saved[: self.tensors - 1], ctx.constants, grad, of_tensors)
        return [*found, grad if of_shortcut else None]


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for the backward, and what strides they have where hooks may lose these (copies on a CPU do)."""
    ctx.save_for_backward(*tensors)
    hooked = _saved_tensors_hooks(False) is not None
    ctx.strides = [None if t is None else t.stride() for t in tensors] if hooked else None


def as_kept(ctx: Any) -> Any:
    """The saved tensors, with the strides that they were saved with. Once: hooks may have to fetch or make them."""
    saved: Sequence[Tensor | None] = ctx.saved_tensors
    if ctx.strides is None:
        return saved
    return [
        t if t is None or t.stride() == stride else t.new_empty_strided(t.shape, stride).copy_(t)
        for t, stride in zip(saved, ctx.strides, strict=True)
    ]


def gradients_of(
    formula: Callable[..., Tensor], tensors: Results, constants: Sequence[Any], grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of these tensors that are needed, by a formula of theirs, to be differentiated again."""
    views = [t if t is None else t.view_as(t) for t in tensors]  # one tensor may have been given twice
    y = formula(*views, *constants)
    wanted = [t for t, needed in zip(views, needs, strict=True) if needed and t is not None]
    found = iter(torch.autograd.grad(y, wanted, grad.to(y.dtype), create_graph=True) if wanted else ())
    return [next(found) if needed else None for needed in needs]


def autocast() -> tuple[tuple[str, torch.dtype], ...]:
    """The kinds of device for which autocast is in force, with its dtype there."""
    if not _any_autocast():
        return ()
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind))


@contextlib.contextmanager
def _autocast_as(state: Sequence[tuple[str, torch.dtype]]) -> Iterator[None]:
    """Autocast as :func:`autocast` found it."""
    with contextlib.ExitStack() as stack:
        for kind, dtype in state:
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        yield


class _Direct(torch.autograd.Function):
    """An eager call. Of the old style: ``setup_context`` costs more than all the rest."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Op, plan.Plan | None, list[int], Sequence[Any]], *_: Tensor | None) -> Any:
        op, known, addresses, arguments = call
        y, *kept = op.forward.run(*arguments, True) if known is None else known.play(addresses, arguments)
        op.save(ctx, arguments, y, kept)
        # Where hooks pack what is saved, it comes back as other tensors.
        ctx.known = known if ctx.strides is None else None
        if not op.also:
            return y
        others = kept[: op.also]
        ctx.mark_non_differentiable(*(each for each in others if each is not None))
        ctx.set_materialize_grads(False)
        return y, *others

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> Any:
        return None, *ctx.op.differentiate(ctx, grad, ctx.needs_input_grad[1:])


class _Registered(torch.autograd.Function):
    """A call of the registered op, by whoever traces or watches, whose results are all of the op's."""

    @staticmethod
    def forward(ctx: Any, op: Op, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            results = op.forward.registered(*arguments)
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        op.save(ctx, arguments[:-1], results[0], [or_none(each) for each in results[1:]])
        ctx.known = None
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> Any:
        op = ctx.op
        given = op.differentiate(ctx, grad, ctx.needs_input_grad[1 : 1 + op.tensors])
        return None, *given, *(None,) * len(ctx.constants), None
