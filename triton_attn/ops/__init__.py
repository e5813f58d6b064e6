"""One file per op: its registration with PyTorch, fake, autograd and launches. Triton is imported on first use."""

from .cbam import cbam
from .se import squeeze_excite

__all__ = ["cbam", "squeeze_excite"]
