"""What the ops share whose gates are made by networks of anybody's, which PyTorch runs between the passes over the map.

Such an op is several steps for autograd. The gradient of a map that is pooled, and multiplied by what was made of that,
has several parts, and autograd would write each and add them up. So it is told less than the truth: a step that
multiplies hands y's gradient on as it came, and tells by a :class:`Link` what it is still to be multiplied by; the step
that pools first, whose backward runs last and knows the gradients of all that was pooled, makes dx in one pass.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .library import keep


class Link:
    """What the steps of one call know of its backward.

    Attributes:
        deferred: what y's gradient, handed on as it came, is still to be multiplied by, and masked with; None where
            no step has handed it on.
    """

    deferred: Any = None
    _again = False

    def take(self) -> Any:
        """What was deferred, once."""
        found, self.deferred = self.deferred, None
        return found

    def is_differentiated_again(self) -> bool:
        """Whether this backward, or an earlier one of the call, is to be differentiated itself (``create_graph``).

        Once there is such a graph, it hands gradients of its own to the map between the steps.
        """
        self._again |= torch.is_grad_enabled()
        return self._again


def begin(ctx: Any, link: Link, *tensors: Tensor | None) -> None:
    """What a step that pools leaves for its backward, where gradients that there are not are None."""
    ctx.link = link
    ctx.set_materialize_grads(False)
    keep(ctx, *tensors)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd is to hear of what is made of these."""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)


def is_wider(gate: Tensor, x: Tensor) -> bool:
    """Whether a gate makes a wider map, as in PyTorch: rare enough to leave it to PyTorch."""
    return torch.promote_types(gate.dtype, x.dtype) != x.dtype


def unchanged(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """What a step hands on as it came: views, so that autograd leads back to the step."""
    return tuple(None if each is None else each.view_as(each) for each in tensors)


def summed(*gradients: Tensor | None) -> Tensor | None:
    """The sum of gradients, None for one that there is not."""
    given = [each for each in gradients if each is not None]
    return functools.reduce(operator.add, given) if given else None


def by_formula(
    formula: Callable[..., tuple[Tensor, ...]], grads: tuple[Tensor | None, ...], *inputs: Tensor | None
) -> Any:
    """The gradients of the inputs by the formula, to be differentiated again where that is asked for.

    One gradient for one input, a tuple for several, None for an input that there is not; None where all of ``grads``
    are.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [None if each is None else _leaf(each, again) for each in inputs]
        given = [(y, grad.to(y.dtype)) for y, grad in zip(formula(*leaves), grads, strict=True) if grad is not None]
        if not given:
            return None if len(inputs) == 1 else (None,) * len(inputs)
        ys, dys = zip(*given, strict=True)
        found = iter(torch.autograd.grad(ys, [each for each in leaves if each is not None], dys, create_graph=again))
    own = tuple(None if each is None else next(found) for each in leaves)
    return own[0] if len(inputs) == 1 else own


def _leaf(t: Tensor, again: bool) -> Tensor:
    """What is differentiated by: with ``again`` it leads back to where the tensor is from."""
    return t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_()
