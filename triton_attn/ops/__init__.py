"""One file per op: its registration with PyTorch, fake, autograd and launches. Triton is imported on first use."""

from .position_gate import attention_gate, pixel_attention
from .se import squeeze_excite

__all__ = ["attention_gate", "pixel_attention", "squeeze_excite"]
