"""One file per op: its registration with PyTorch, fake, autograd and launches. Triton is imported on first use."""

from .cbam import cbam
from .channel_gate import channel_gate
from .eca import eca
from .non_local import non_local

__all__ = ["cbam", "channel_gate", "eca", "non_local"]
