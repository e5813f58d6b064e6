"""Other people's networks on our kernels, in place: :func:`fuse` and :func:`unfuse`, and how to add one's own."""

from .context import ContextGate
from .fused import Fused
from .gates import Chain, ChannelGate, Neighbours
from .maps import MapGate
from .report import Entry, Report
from .strips import StripGate
from .summed import SplitGate, SumGate
from .swap import fuse, register_adapter, unfuse
from .tails import Tail
from .within import Within

__all__ = [
    "Chain",
    "ChannelGate",
    "ContextGate",
    "Entry",
    "Fused",
    "MapGate",
    "Neighbours",
    "Report",
    "SplitGate",
    "StripGate",
    "SumGate",
    "Tail",
    "Within",
    "fuse",
    "register_adapter",
    "unfuse",
]
