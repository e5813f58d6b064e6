"""What other libraries' state dicts hold: their names and shapes, written out, and what is called how here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from triton_attn import published

Keys = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int, bias: bool = True) -> Keys:
    return {f"{name}.weight": shape} | ({f"{name}.bias": (shape[0],)} if bias else {})


def norm(name: str, channels: int) -> Keys:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}


def attention(prefix: str) -> Keys:
    return (
        layer(f"{prefix}query_conv", 2, 16, 1, 1)
        | layer(f"{prefix}key_conv", 2, 16, 1, 1)
        | layer(f"{prefix}value_conv", 16, 16, 1, 1)
        | {f"{prefix}gamma": (1,)}
    )


def wide(name: str, channels: int, out: int) -> Keys:
    return layer(f"{name}.0", out, channels, 3, 3, bias=False) | norm(f"{name}.1", out)


def gate(convolution: str) -> tuple[Keys, dict[str, str]]:
    """A U-Net's, whose convolutions lie in a part of their own or not."""
    keys: Keys = {}
    names = {}
    for theirs, ours, shape in (("W_g", "g_", (8, 24)), ("W_x", "x_", (8, 16)), ("psi", "psi_", (1, 8))):
        keys |= layer(f"{theirs}.0{convolution}", *shape, 1, 1) | norm(f"{theirs}.1", shape[0])
        names |= {f"{theirs}.0{convolution}": "psi" if theirs == "psi" else f"{ours}conv", f"{theirs}.1": f"{ours}norm"}
    return keys, names


# What other libraries' state dicts hold, for 16 channels (64 for DANet's head), and what is called how here.
CASES: dict[str, tuple[Callable[[], nn.Module], str, Keys, dict[str, str]]] = {
    "se, senet": (
        lambda: published.SEBlock(16, 4, bias=False),
        "published.se",
        layer("fc.0", 4, 16, bias=False) | layer("fc.2", 16, 4, bias=False),
        {"fc.0": "fc1", "fc.2": "fc2"},
    ),
    "se, torchvision": (
        lambda: published.SEBlock(16, 4),
        "published.se",
        layer("fc1", 4, 16, 1, 1) | layer("fc2", 16, 4, 1, 1),
        {},
    ),
    "se, timm": (
        lambda: published.SEBlock(16, hidden_channels=8),
        "published.se",
        layer("fc1", 8, 16, 1, 1) | layer("fc2", 16, 8, 1, 1),
        {},
    ),
    "se, timm_efficientnet": (
        lambda: published.SEBlock(16, 4),
        "published.se",
        layer("conv_reduce", 4, 16, 1, 1) | layer("conv_expand", 16, 4, 1, 1),
        {"conv_reduce": "fc1", "conv_expand": "fc2"},
    ),
    "eca, ecanet": (lambda: published.ECABlock(16), "published.eca", {"conv.weight": (1, 1, 3)}, {}),
    "eca, timm": (lambda: published.ECABlock(16), "published.eca", {"conv.weight": (1, 1, 3)}, {}),
    "cbam, attention-module": (
        lambda: published.CBAM(16, 4),
        "published.cbam",
        layer("ChannelGate.mlp.1", 4, 16)
        | layer("ChannelGate.mlp.3", 16, 4)
        | layer("SpatialGate.spatial.conv", 1, 2, 7, 7, bias=False)
        | norm("SpatialGate.spatial.bn", 1),
        {
            "ChannelGate.mlp.1": "fc1",
            "ChannelGate.mlp.3": "fc2",
            "SpatialGate.spatial.conv": "conv",
            "SpatialGate.spatial.bn": "norm",
        },
    ),
    "coordinate, coordattention": (
        lambda: published.CoordinateAttention(16),
        "published.coordinate",
        layer("conv1", 8, 16, 1, 1) | norm("bn1", 8) | layer("conv_h", 16, 8, 1, 1) | layer("conv_w", 16, 8, 1, 1),
        {},
    ),
    "coordinate, mbv2_ca": (
        lambda: published.CoordinateAttention(16),
        "published.coordinate",
        layer("conv1", 8, 16, 1, 1) | norm("bn1", 8) | layer("conv2", 16, 8, 1, 1) | layer("conv3", 16, 8, 1, 1),
        {"conv2": "conv_h", "conv3": "conv_w"},
    ),
    "nonlocal, alexhex7": (
        lambda: published.NonLocal(16),
        "published.nonlocal",
        layer("g.0", 8, 16, 1, 1)
        | layer("W.0", 16, 8, 1, 1)
        | norm("W.1", 16)
        | layer("theta", 8, 16, 1, 1)
        | layer("phi.0", 8, 16, 1, 1),
        {"g.0": "g", "W.0": "out", "W.1": "norm", "phi.0": "phi"},
    ),
    "position, danet": (lambda: published.PositionAttention(16), "published.position", attention(""), {}),
    "channel, danet": (lambda: published.ChannelAttention(16), "published.channel", {"gamma": (1,)}, {}),
    "head, danet": (
        lambda: published.DualAttention(64, 5),
        "published.danet",
        wide("conv5a", 64, 16)
        | wide("conv5c", 64, 16)
        | attention("sa.")
        | {"sc.gamma": (1,)}
        | wide("conv51", 16, 16)
        | wide("conv52", 16, 16)
        | layer("conv8.1", 5, 16, 1, 1),
        {
            **{f"conv5a.{i}": f"position_in.{i}" for i in range(2)},
            **{f"conv51.{i}": f"position_out.{i}" for i in range(2)},
            **{f"conv5c.{i}": f"channel_in.{i}" for i in range(2)},
            **{f"conv52.{i}": f"channel_out.{i}" for i in range(2)},
            **{f"sa.{name}_conv": f"position.{name}_conv" for name in ("query", "key", "value")},
            "sa": "position",
            "sc": "channel",
            "conv8.1": "conv_out",
        },
    ),
    "gate, leejunhyun": (lambda: published.AttentionGate(16, 24), "published.gate", *gate("")),
    "gate, monai": (lambda: published.AttentionGate(16, 24), "published.gate", *gate(".conv")),
    "grid, attention-gated-networks": (
        lambda: published.GridAttentionGate(16, 24),
        "published.grid_gate",
        layer("W.0", 16, 16, 1, 1)
        | norm("W.1", 16)
        | layer("theta", 8, 16, 2, 2, bias=False)
        | layer("phi", 8, 24, 1, 1)
        | layer("psi", 1, 8, 1, 1),
        {"W.0": "W", "W.1": "norm"},
    ),
    "pixel, pan": (lambda: published.PixelAttention(16), "published.pixel", layer("conv", 16, 16, 1, 1), {}),
    "scse, segmentation_models_pytorch": (
        lambda: published.SCSE(16, 4),
        "published.scse",
        layer("cSE.1", 4, 16, 1, 1) | layer("cSE.3", 16, 4, 1, 1) | layer("sSE.0", 1, 16, 1, 1),
        {"cSE.1": "fc1", "cSE.3": "fc2", "sSE.0": "conv"},
    ),
}
