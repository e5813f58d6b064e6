"""One file per op: its registration with PyTorch, its fake, its autograd, its launches. Triton is imported on first use."""

from .se import squeeze_excite

__all__ = ["squeeze_excite"]
