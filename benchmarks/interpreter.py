"""Triton's interpreter, with its language patched once a launch and not at every call of a device function."""

from __future__ import annotations

import functools
import inspect
from types import ModuleType, SimpleNamespace
from typing import Any


@functools.cache
def patch_once_a_launch() -> None:
    """Make the interpreter about twice as fast; results are the same.

    To run a kernel it puts its own functions into ``triton.language``, and takes them out at the end. It does so again
    whenever a kernel calls a device function, where most of it is in place already: finding that out is half of what
    it does all day.
    """
    from triton.runtime import interpreter

    patch, call = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[ModuleType] = set()

    @functools.cache
    def modules_of(fn: Any) -> frozenset[ModuleType]:
        language = (interpreter.tl, interpreter.tl.core)
        return frozenset(each for each in fn.__globals__.values() if inspect.ismodule(each) and each in language)

    def patch_the_rest(fn: Any) -> Any:
        modules = modules_of(fn)
        if patched >= modules:
            return SimpleNamespace(restore=lambda: None)
        patched.update(modules)
        return patch(fn)

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        try:
            return call(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_the_rest
    interpreter.GridExecutor.__call__ = launch
