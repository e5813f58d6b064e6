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
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn import Parameter

from .per_thread import PerThread, nothing_is_set

Backend = Literal["auto", "triton", "reference"]
BACKENDS = ("auto", "triton", "reference")
REMARK = ""  # in place of a backend
VARIABLE = "TRITON_ATTN_BACKEND"
INTERPRETER = "TRITON_INTERPRET"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Looking for the package does not import it.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Of all threads; read once, for a look into the environment takes as long as a kernel's start.
_default = os.environ.get(VARIABLE, "auto")
_requested: PerThread[str] = PerThread()
_heard: PerThread[list[Choice]] = PerThread()


class BackendError(RuntimeError):
    """Triton was asked for (``use_backend("triton")``) where it cannot serve."""


@dataclass(frozen=True)
class Choice:
    """The backend that serves a call, and the reason in words."""

    backend: str
    reason: str


@contextlib.contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Choose the backend for the calls within, in this thread.

    Other threads go by contexts of their own, or by the default. So does what PyTorch computes in a thread of its own:
    a backward on a GPU, and with it a forward that ``torch.utils.checkpoint`` computes again there. Have that one
    chosen by ``checkpoint(…, context_fn=lambda: (nullcontext(), use_backend(name)))``, or set the default.

    Args:
        name: ``"auto"`` takes Triton where it can serve and the reference elsewhere; ``"triton"`` takes Triton or
            raises :class:`BackendError`; ``"reference"`` takes the plain PyTorch twins. Outside of any such context
            the environment variable ``TRITON_ATTN_BACKEND`` decides for all threads, and without it ``"auto"``.

    Raises:
        ValueError: an unknown name.
    """
    with _requested.set(_checked(name, "use_backend")):
        yield


def requested_backend() -> str:
    """What this thread's innermost :func:`use_backend`, or else the environment, asks for."""
    requested = _requested.value
    return _checked(_default, VARIABLE) if requested is None else requested


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


def use_triton(x: Tensor, *others: Tensor | None, also: str = "") -> bool:
    """Whether Triton serves a call on ``x`` and these others; asked once per call, in a block's forward.

    Args:
        x: the map.
        others: whatever else takes part: weights, a shortcut.
        also: what Triton computes with it, for whoever listens.

    Raises:
        BackendError: Triton was asked for and cannot serve.
    """
    if not isinstance(x, Tensor):
        return False  # the reference says what is wrong with it
    if is_plain(x):
        return False
    request, heard = requested_backend(), _heard.value
    obstacle = "asked for" if request == "reference" else _obstacle(x, *others)
    if heard is not None:
        heard.append(Choice("reference", obstacle) if obstacle else Choice("triton", _served_by(x) + also))
    elif obstacle and request == "triton":
        raise BackendError(f"backend 'triton' was asked for, but cannot serve: {obstacle}")
    return not obstacle


def refuse(reason: str) -> None:
    """Note that the plain twin serves a call, since there is no kernel for what it computes.

    Raises:
        BackendError: Triton was asked for.
    """
    request, heard = requested_backend(), _heard.value
    if heard is not None:
        heard.append(Choice("reference", "asked for" if request == "reference" else reason))
    elif request == "triton":
        raise BackendError(f"backend 'triton' was asked for, but cannot serve: {reason}")


def remark(text: str) -> None:
    """Note what is to be said of a call that is about to be made if Triton serves it, for whoever listens."""
    if (heard := _heard.value) is not None:
        heard.append(Choice(REMARK, text))


def is_plain(x: Tensor) -> bool:
    """Whether a call on ``x`` is the twin's, at once: on a CPU finding out why may take longer than a small block."""
    return (
        isinstance(x, Tensor)
        and x.is_cpu
        and not interpreting()
        and _heard.value is None
        and requested_backend() == "auto"
    )


def is_open() -> bool:
    """Whether a call that Triton served before may be served again unasked: nobody chose otherwise, or listens."""
    if nothing_is_set():
        return _default != "reference"
    return _heard.value is None and requested_backend() != "reference"


def listen() -> contextlib.AbstractContextManager[list[Choice]]:
    """Collect the choices made within by this thread, in order; nothing raises for lack of Triton meanwhile."""
    return _heard.set([])


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return INTERPRETER in os.environ and os.environ[INTERPRETER].lower() in ("1", "true", "yes", "on", "y")


def _served_by(x: Tensor) -> str:
    return "Triton's interpreter (TRITON_INTERPRET=1)" if interpreting() else f"a GPU and {_short(x.dtype)}"


def _obstacle(x: Tensor, *others: Tensor | None) -> str | None:
    """Why Triton cannot serve ``x`` with these others, or None."""
    if not _HAS_TRITON:
        return "Triton is not installed"
    if x.dtype not in DTYPES:
        return f"{_short(x.dtype)} (Triton serves float16, bfloat16 and float32)"
    # Not torch.compiler.is_exporting(): on PyTorch 2.11 that is true in every compilation. ONNX exports by either way.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():
        return "an exporter is at work, which needs plain PyTorch operators"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "torch.func or forward-mode differentiation is at work, which needs plain PyTorch operators"
    for t in (x, *others):
        if type(t) is not Tensor and type(t) is not Parameter and _is_foreign(t):
            return f"{type(t).__name__} is a subclass of torch.Tensor (Triton serves plain tensors)"
    if interpreting():
        return None if x.device.type == "cpu" else f"the interpreter serves CPU tensors, x is on {x.device}"
    if x.device.type != "cuda":
        return f"x is on {x.device}, not on a GPU"
    return _gpu_obstacle(x.device)


def _is_foreign(t: object) -> bool:
    """Whether this is a tensor of a kind that only its own library knows, unlike those that PyTorch traces with."""
    return isinstance(t, Tensor) and type(t) not in (Tensor, Parameter, FakeTensor, FunctionalTensor)


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
