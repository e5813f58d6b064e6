"""The plain PyTorch twin of every block and network: the formulas, the oracle of the tests, the path on a CPU."""

from . import published
from .attention_gate import AttentionGate
from .cbam import CBAM
from .common import AttentionBlock
from .coordinate import CoordinateAttention
from .dual import DualAttentionBlock
from .eca import ECABlock
from .non_local import NonLocalBlock
from .pixel import AttentionModule
from .resnet import ResNet, ResNetWithAttention, build_resnet
from .se import SEBlock

__all__ = [
    "CBAM",
    "AttentionBlock",
    "AttentionGate",
    "AttentionModule",
    "CoordinateAttention",
    "DualAttentionBlock",
    "ECABlock",
    "NonLocalBlock",
    "ResNet",
    "ResNetWithAttention",
    "SEBlock",
    "build_resnet",
    "published",
]
