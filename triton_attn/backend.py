"""Which backend serves a tensor, and why."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "reference"]
BACKENDS = ("auto", "triton", "reference")
VARIABLE = "TRITON_ATTN_BACKEND"
INTERPRETER = "TRITON_INTERPRET"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Looking for the package does not import it.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_default = "auto"
_requested: str | None = None
_heard: list[Choice] | None = None


class BackendError(RuntimeError):
    """Triton was asked for (``use_backend("triton")``) where it cannot serve."""


@dataclass(frozen=True)
class Choice:
    """The backend that serves a call, and the reason in words."""

    backend: str
    reason: str


@contextlib.contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Choose the backend for the calls within, process-wide: from one thread at a time.

    Args:
        name: ``"auto"`` takes Triton where it can serve and the reference elsewhere; ``"triton"`` takes Triton or
            raises :class:`BackendError`; ``"reference"`` takes the plain PyTorch twins. Outside of any such context
            the environment variable ``TRITON_ATTN_BACKEND`` decides, and without it ``"auto"``.

    Raises:
        ValueError: an unknown name.
    """
    global _requested
    outer, _requested = _requested, _checked(name, "use_backend")
    try:
        yield
    finally:
        _requested = outer


def requested_backend() -> str:
    """What the innermost :func:`use_backend`, or else the environment, asks for."""
    if _requested is not None:
        return _requested
    # Looking first: os.environ.get raises and catches two errors inside for a variable that is not there.
    return _checked(os.environ[VARIABLE], VARIABLE) if VARIABLE in os.environ else "auto"


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


def use_triton(x: Tensor) -> bool:
    """Whether Triton serves a block's call on ``x``; asked once per call, in the block's forward.

    Args:
        x: the block's input.

    Raises:
        BackendError: Triton was asked for and cannot serve.
    """
    if not isinstance(x, Tensor):
        return False  # the reference says what is wrong with it
    request = requested_backend()
    if _heard is None and request == "auto" and x.is_cpu and not interpreting():
        return False  # at once: a small block on a CPU takes little longer than finding out why
    if request == "reference":
        choice = Choice("reference", "asked for")
    else:
        obstacle = _obstacle(x)
        choice = Choice("reference", obstacle) if obstacle else Choice("triton", _served_by(x))
        if request == "triton" and obstacle and _heard is None:
            raise BackendError(f"backend 'triton' was asked for, but cannot serve: {obstacle}")
    if _heard is not None:
        _heard.append(choice)
    return choice.backend == "triton"


def is_open() -> bool:
    """Whether a call that Triton served before may be served again unasked: nobody chose otherwise, or listens."""
    return _requested != "reference" and _heard is None and (_requested is not None or _default != "reference")


@contextlib.contextmanager
def listen() -> Iterator[list[Choice]]:
    """Collect the choices made within, in order; nothing raises for lack of Triton meanwhile."""
    global _heard
    outer, _heard = _heard, []
    try:
        yield _heard
    finally:
        _heard = outer


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return INTERPRETER in os.environ and os.environ[INTERPRETER].lower() in ("1", "true", "yes", "on", "y")


def _served_by(x: Tensor) -> str:
    return "Triton's interpreter (TRITON_INTERPRET=1)" if interpreting() else f"a GPU and {_short(x.dtype)}"


def _obstacle(x: Tensor) -> str | None:
    """Why Triton cannot serve ``x``, or None."""
    if not _HAS_TRITON:
        return "Triton is not installed"
    if x.dtype not in DTYPES:
        return f"{_short(x.dtype)} (Triton serves float16, bfloat16 and float32)"
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return "an exporter is at work, which needs plain PyTorch operators"
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    ):
        return "torch.func or forward-mode differentiation is at work, which needs plain PyTorch operators"
    if interpreting():
        return None if x.device.type == "cpu" else f"the interpreter serves CPU tensors, x is on {x.device}"
    if x.device.type != "cuda":
        return f"x is on {x.device}, not on a GPU"
    return _gpu_obstacle(x.device)


def _gpu_obstacle(device: torch.device) -> str | None:
    # torch.compile cannot trace a device query; it refuses GPUs too old for Triton itself.
    if torch.version.hip is not None or torch.compiler.is_compiling():
        return None
    capability = _capability(device)
    if capability < (7, 5):
        return f"compute capability {capability[0]}.{capability[1]} (Triton serves 7.5 and up)"
    return None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
