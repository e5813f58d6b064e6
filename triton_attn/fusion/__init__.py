"""Other people's networks on our kernels, in place: :func:`fuse` and :func:`unfuse`, and how to add one's own."""

from .fused import Fused
from .gates import Chain, ChannelGate, Neighbours
from .maps import MapGate
from .report import Entry, Report
from .strips import StripGate
from .swap import fuse, register_adapter, unfuse
from .tails import Tail

__all__ = [
    "Chain",
    "ChannelGate",
    "Entry",
    "Fused",
    "MapGate",
    "Neighbours",
    "Report",
    "StripGate",
    "Tail",
    "fuse",
    "register_adapter",
    "unfuse",
]
