"""Attention blocks for convolutional networks as fused Triton kernels, with a plain PyTorch twin for each."""

# _checkout says where the others find `reference`, and so comes first.
from . import _checkout, functional, fusion, published, reference  # noqa: F401
from .attn_layer import attn_layer
from .backend import BackendError, use_backend
from .blocks import (
    CBAM,
    AttentionGate,
    AttentionModule,
    CoordinateAttention,
    DualAttentionBlock,
    ECABlock,
    NonLocalBlock,
    SEBlock,
)
from .explain import explain
from .fusion import fuse, register_adapter, unfuse
from .insertion import insert, remove
from .reference import ResNetWithAttention
from .registry import create_attention, list_attention
from .resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from .tune import tune
from .version import __version__

__all__ = [
    "CBAM",
    "AttentionGate",
    "AttentionModule",
    "BackendError",
    "CoordinateAttention",
    "DualAttentionBlock",
    "ECABlock",
    "NonLocalBlock",
    "ResNetWithAttention",
    "SEBlock",
    "__version__",
    "attn_layer",
    "create_attention",
    "explain",
    "functional",
    "fuse",
    "fusion",
    "insert",
    "list_attention",
    "published",
    "reference",
    "register_adapter",
    "remove",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "tune",
    "unfuse",
    "use_backend",
]
