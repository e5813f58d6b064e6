"""The blocks a user builds: each is its plain twin with a forward that takes Triton where Triton serves.

At the head of each file stands its map: the op; its kernels, ``NAME_kernel`` in ``kernels/``, in the order of their
launches (where the gates' network is small: larger ones have a launch for each layer); what is kept for the backward.
"""

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
