"""The class that a module has while it is fused: its own, with another forward where Triton serves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook

from .. import backend
from ..reference.tracing import leaf


class Recipe(Protocol):
    """How a fused class computes what its plain class does."""

    def obstacle(self, module: nn.Module) -> str | None:
        """Why this module, as it is now, is not computed by the recipe at all; None where it is."""

    def how(self, module: nn.Module) -> str:
        """In words, how a module without an obstacle is computed, for the report."""

    def __call__(self, *module_and_inputs: Any, **named: Any) -> Tensor | None:
        """The module's output; None where that is the plain class's affair.

        Then nothing has happened, but that ``backend`` has heard why.
        """


class Fused:
    """Mixin of every fused class: ``class FusedSE(Fused, SE, by=recipe)``.

    Such a class is its plain class with another forward. It has no state, so that modules change to it and back by
    their ``__class__`` alone, and stands in a module of its own name, so that pickles find it.

    Args:
        by: the recipe for its forward.
        read: the fingerprint of the plain class's forward that the recipe was written after (:mod:`.sources`); without
            one any is taken.
        helpers: other methods of the plain class that its forward calls, part of the fingerprint.
    """

    fused_from: ClassVar[type[nn.Module]]
    fused_by: ClassVar[Recipe]
    fused_read: ClassVar[str | None]
    fused_helpers: ClassVar[tuple[str, ...]]

    def __init_subclass__(
        cls, by: Recipe | None = None, read: str | None = None, helpers: tuple[str, ...] = (), **others: Any
    ) -> None:
        super().__init_subclass__(**others)
        if by is None:  # somebody's subclass of a fused class, as sharding makes them
            return
        cls.fused_from = next(base for base in cls.__bases__ if issubclass(base, nn.Module))
        cls.fused_by, cls.fused_read, cls.fused_helpers = by, read, helpers
        if cls.__doc__ is None:
            cls.__doc__ = cls.fused_from.__doc__
        cls.forward = _forward(cls.fused_from, by)  # type: ignore[attr-defined]


def _forward(plain: type[nn.Module], by: Recipe) -> Callable[..., Any]:
    """A forward that goes by the recipe where Triton serves, else by the plain class's.

    What ``torch.jit.script`` compiles is the source of what a function wraps: the plain forward.
    """
    as_before = plain.forward

    @functools.wraps(as_before)
    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        if inputs and not named:
            first = inputs[0]
            if isinstance(first, Proxy):
                return leaf(self, *inputs)
            if isinstance(first, Tensor) and not backend.is_plain(first):
                if _has_any_global_hook():
                    backend.refuse("hooks on all modules, which the inner ones are not called without")
                elif (y := by(self, *inputs)) is not None:
                    return y
        return as_before(self, *inputs, **named)

    return forward
