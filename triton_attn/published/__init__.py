"""The blocks as papers and other libraries have them: often another formula than the tutorial's under the same name."""

from ..blocks import SEBlock
from .attention_gate import AttentionGate, GridAttentionGate
from .cbam import CBAM
from .coordinate import CoordinateAttention
from .danet import ChannelAttention, DualAttention, PositionAttention
from .eca import ECABlock
from .global_context import GlobalContext
from .non_local import NonLocal
from .pixel import PixelAttention
from .scse import SCSE
from .simam import SimAM
from .weights import export, layouts, load

__all__ = [
    "CBAM",
    "SCSE",
    "AttentionGate",
    "ChannelAttention",
    "CoordinateAttention",
    "DualAttention",
    "ECABlock",
    "GlobalContext",
    "GridAttentionGate",
    "NonLocal",
    "PixelAttention",
    "PositionAttention",
    "SEBlock",
    "SimAM",
    "export",
    "layouts",
    "load",
]
