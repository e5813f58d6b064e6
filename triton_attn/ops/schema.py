"""What PyTorch is told of a launcher, from the launcher's own parameters: so nothing says them twice.

A parameter is a tensor, a constant, or a group of such, which is a NamedTuple. The registered op takes all of them one
by one, as autograd and plans see them; the launcher gets its groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from torch import Tensor

TYPES = {Tensor: "Tensor", str: "str", bool: "bool", int: "int", float: "float"}


class Parameter(NamedTuple):
    """One of a launcher's: what it is called in the schema, and what takes its values; None where it is one value."""

    spelled: tuple[str, ...]
    group: Callable[..., Any] | None
    is_optional: bool


def parameters_of(run: Callable[..., Any]) -> list[Parameter]:
    """Those of a launcher, by its annotations: of the types above, a NamedTuple of these, or any of them or None."""
    hints = get_type_hints(run)
    found: list[Parameter] = []
    names: set[str] = set()
    for name in inspect.signature(run).parameters:
        kind, is_optional = _without_none(hints[name])
        if kind in TYPES:
            fields = {name: kind}
        else:
            fields = {key if key not in names else f"{name}_{key}": hint for key, hint in get_type_hints(kind).items()}
        names |= set(fields)
        spelled = tuple(f"{_spelled(hint, is_optional)} {key}" for key, hint in fields.items())
        found.append(Parameter(spelled, None if kind in TYPES else kind, is_optional))
    return found


def schema_of(name: str, parameters: Sequence[Parameter], results: int) -> str:
    """The schema of an op that returns so many tensors."""
    returned = "Tensor[]" if results == 1 else f"({', '.join(['Tensor'] * results)})"
    return f"{name}({', '.join(each for parameter in parameters for each in parameter.spelled)}) -> {returned}"


def by_groups(run: Callable[..., Any], parameters: Sequence[Parameter]) -> Callable[..., Any]:
    """``run`` for arguments that come one by one; a group that may be None is, where all of its values are."""
    if all(each.group is None for each in parameters):
        return run

    def grouped(*arguments: Any) -> Any:
        given, at = [], 0
        for spelled, group, is_optional in parameters:
            values, at = arguments[at : at + len(spelled)], at + len(spelled)
            if group is None:
                given.append(values[0])
            else:
                is_none = is_optional and all(each is None for each in values)
                given.append(None if is_none else group(*values))
        return run(*given)

    return grouped


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type, and whether None may stand for it."""
    if type(None) not in get_args(hint):
        return hint, False
    (kind,) = (each for each in get_args(hint) if each is not type(None))
    return kind, True


def _spelled(hint: Any, is_optional: bool) -> str:
    kind, may_be_none = _without_none(hint)
    return TYPES[kind] + "?" * (is_optional or may_be_none)
