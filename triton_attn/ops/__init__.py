"""One file per op: its registration with PyTorch, fake, autograd and launches. Triton is imported on first use."""

from .se import squeeze_excite

__all__ = ["squeeze_excite"]
