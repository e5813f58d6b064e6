"""One file per op: its registration with PyTorch, fake, autograd and launches. Triton is imported on first use."""

from .cbam import CBAM
from .channel_gate import CHANNEL_GATE
from .eca import ECA
from .gate_by import gate_by
from .non_local import NON_LOCAL, non_local
from .non_local_block import NON_LOCAL_BLOCK, non_local_block
from .normed_gate import NORMED_GATE, normed_gate
from .position_gate import POSITION_GATE, attention_gate, pixel_attention
from .shortcut import serve
from .simam import SIMAM

__all__ = [
    "CBAM",
    "CHANNEL_GATE",
    "ECA",
    "NON_LOCAL",
    "NON_LOCAL_BLOCK",
    "NORMED_GATE",
    "POSITION_GATE",
    "SIMAM",
    "attention_gate",
    "gate_by",
    "non_local",
    "non_local_block",
    "normed_gate",
    "pixel_attention",
    "serve",
]
