"""Triton's interpreter, faster: its language is patched once a launch, and its types are made once.

Every lane of tests that runs kernels on a CPU waits for it; results are the same.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

from benchmarks.counted.operators import patch_operators

KNOWN = "3.8."  # the releases whose classes these are


@functools.cache
def patch_once_a_launch() -> None:
    """Make the interpreter about twice as fast; results are the same.

    To run a kernel it puts its own functions into ``triton.language``, and takes them out at the end. It does so again
    whenever a kernel calls a device function, where most of it is in place already: finding that out is half of what
    it does all day. What there is to put where is looked for once.
    """
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):
        return  # another release, which is left as it is
    patch, call = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[ModuleType] = set()
    found: dict[Any, tuple[list[Any], list[Any]]] = {}
    nothing = SimpleNamespace(restore=lambda: None)

    @functools.cache
    def modules_of(fn: Any) -> frozenset[ModuleType]:
        language = (interpreter.tl, interpreter.tl.core)
        return frozenset(each for each in fn.__globals__.values() if inspect.ismodule(each) and each in language)

    def patch_the_rest(fn: Any) -> Any:
        modules = modules_of(fn)
        if patched >= modules:
            return nothing
        key = modules, frozenset(patched)
        patched.update(modules)
        scope = interpreter._LangPatchScope()
        if key not in found:
            scope = patch(fn)
            own = [(owner, name, getattr(owner, name)) for owner, name, _ in scope._changes]
            found[key] = own, list(scope._changes)
            return scope
        own, scope._changes = found[key][0], list(found[key][1])
        for owner, name, value in own:
            setattr(owner, name, value)
        return scope

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        try:
            return call(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_the_rest
    interpreter.GridExecutor.__call__ = launch
    if version("triton").startswith(KNOWN):
        _make_types_once()
        _unwrap_at_a_glance()
        patch_operators()


def _make_types_once() -> None:
    """Types of blocks, shapes of tensors and NumPy's types: the interpreter makes them anew for every value."""
    from triton.language import core
    from triton.runtime import interpreter

    block_init, np_dtype = core.block_type.__init__, interpreter._get_np_dtype
    types: dict[Any, dict[str, Any]] = {}

    @functools.cache
    def shape_of(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        return core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])

    def block(self: Any, element: Any, shape: Any) -> None:
        if type(element) is not core.dtype:  # a pointer, of which there are many kinds
            block_init(self, element, shape)
            return
        key = (element.name, *(each.value if isinstance(each, core.constexpr) else each for each in shape))
        if key in types:
            self.__dict__.update(types[key])
            return
        block_init(self, element, shape)
        self.known = (element, *shape_of(key[1:]))
        types[key] = dict(self.__dict__)

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        self.handle, self.type = handle, kind
        try:
            self.dtype, self.numel, self.shape = kind.__dict__["known"]
        except KeyError:
            sizes = tuple(map(int, kind.shape)) if kind.is_block() else ()
            kind.known = self.dtype, self.numel, self.shape = (kind.scalar, *shape_of(sizes))

    equal, true = core.tuple.__eq__, core.constexpr(True)
    core.tuple.__eq__ = lambda self, other: true if self is other else equal(self, other)
    core.block_type.__init__ = block
    core.tensor.__init__ = tensor
    names: dict[str, Any] = {}

    def name_of(kind: Any) -> Any:
        scalar = kind.scalar
        if scalar.name not in names:
            names[scalar.name] = np_dtype(scalar)
        return names[scalar.name]

    interpreter._get_np_dtype = name_of


def _unwrap_at_a_glance() -> None:
    """Every function of the language asks of all its arguments whether they are known when it compiles."""
    from triton.language import core

    unwrap = core._unwrap_if_constexpr
    plain = {core.tensor, core.dtype, core.block_type, core.pointer_type, int, float, bool, str, type(None)}

    def at_a_glance(value: Any) -> Any:
        kind = type(value)
        return value if kind in plain else value.value if kind is core.constexpr else unwrap(value)

    for name, module in list(sys.modules.items()):
        if name.startswith("triton.") and vars(module).get("_unwrap_if_constexpr") is unwrap:
            vars(module)["_unwrap_if_constexpr"] = at_a_glance
