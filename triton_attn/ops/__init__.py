"""One file per op: its registration with PyTorch, fake, autograd and launches. Triton is imported on first use."""

from .cbam import cbam
from .channel_gate import channel_gate
from .eca import eca
from .non_local import non_local
from .position_gate import attention_gate, pixel_attention

__all__ = ["attention_gate", "cbam", "channel_gate", "eca", "non_local", "pixel_attention"]
