"""Registering an op with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "triton_attn"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


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
        function: its autograd. It stands at PyTorch's Autograd key itself, which costs a third less per call than
            ``torch.library.register_autograd``; its forward calls the op within :func:`below_autograd`.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, launch, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if function is not None:
        _library.impl(name, lambda *args: function.apply(*args), "Autograd")
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def below_autograd() -> Any:
    """A context in which a call of an op goes past its autograd to its implementation."""
    return torch._C._AutoDispatchBelowAutograd()
