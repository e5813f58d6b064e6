"""The blocks a user builds: each is its plain twin with a forward that takes Triton where Triton serves."""

from .attention_gate import AttentionGate
from .cbam import CBAM
from .coordinate import CoordinateAttention
from .dual import DualAttentionBlock
from .eca import ECABlock
from .non_local import NonLocalBlock
from .pixel import AttentionModule
from .se import SEBlock

__all__ = [
    "CBAM",
    "AttentionGate",
    "AttentionModule",
    "CoordinateAttention",
    "DualAttentionBlock",
    "ECABlock",
    "NonLocalBlock",
    "SEBlock",
]
