"""Registering an op with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "triton_attn"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {}
"""What every op runs, for the meters to look into."""


def register(
    schema: str,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    function: type[torch.autograd.Function] | None = None,
) -> Any:
    """Define ``triton_attn::…`` and return it as something to call.

    Args:
        schema: name, arguments and results.
        launch: the implementation, on a GPU and, under Triton's interpreter, on a CPU.
        fake: the same without data: results of the right shape, dtype, device and strides.
        function: its autograd, whose forward calls the op :func:`below_autograd`. The op's last argument says whether
            anything is to be differentiated; where nothing is, autograd is left out. It stands at PyTorch's Autograd
            key itself, which costs a third less per call than ``torch.library.register_autograd``.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, launch, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    IMPLEMENTATIONS[op] = launch

    if function is not None:

        def autograd(*arguments: Any) -> Any:
            return function.apply(*arguments) if arguments[-1] else below_autograd(op, *arguments)

        _library.impl(name, autograd, "Autograd")
    return op


def below_autograd(op: Any, *arguments: Any) -> Any:
    """Call an op past its autograd, at its implementation."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)
