"""Official weights: how other libraries name and shape the parameters of the published blocks.

A layout says which layer of theirs is which of ours. What a layer holds (weight, bias, a batch norm's statistics) goes
by the same names everywhere, and but for the conversions below it has the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..reference import eca, published, se

Names = Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """How one library has one block.

    Args:
        name: the library's.
        block: the plain twin's class.
        names: from our layers to theirs, of a block; a layer may be a parameter itself.
        pointwise: dense layers of ours that are 1×1 convolutions there.
        flipped: convolutions of ours whose input channels come there in the other order.
        extra: layers of theirs that the block has not, each with one of ours that is shaped like it. All of them may be
            there, or none; their weights are left out.
        folded: a bias of ours that is not there, in front of a batch norm, and that batch norm.
        obstacle: why the library computes something else than this block, or None.
    """

    name: str
    block: type[nn.Module]
    names: Callable[[Any], Names]
    pointwise: tuple[str, ...] = ()
    flipped: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    folded: tuple[str, str] | None = None
    obstacle: Callable[[Any], str | None] = field(default=lambda _: None)

    def keys(self, block: nn.Module) -> dict[str, str]:
        """From our keys to theirs. A bias that is folded has none there."""
        names, found = self.names(block), {}
        for key in block.state_dict():
            if self.folded is not None and key == f"{self.folded[0]}.bias" and self.folded[1] in names:
                continue
            layer, _, last = key.rpartition(".")
            found[key] = names[key] if key in names else f"{names[layer]}.{last}"
        return found

    def ours(self, block: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state as ours."""
        own = block.state_dict()
        found = {
            key: self._converted(key, state[theirs]) if theirs in state else own[key]
            for key, theirs in self.keys(block).items()
        }
        return found | {key: own[key].new_zeros(own[key].shape) for key in own if key not in found}

    def theirs(self, block: nn.Module) -> dict[str, Tensor]:
        """Our state as theirs, in memory of its own."""
        own = {key: value.detach().clone() for key, value in block.state_dict().items()}
        keys = self.keys(block)
        if self.folded is not None and f"{self.folded[0]}.bias" not in keys:
            # In front of a batch norm a bias shifts the mean that is subtracted, and nothing else.
            own[f"{self.folded[1]}.running_mean"] -= own[f"{self.folded[0]}.bias"]
        return {theirs: self._exported(key, own[key]) for key, theirs in keys.items()}

    def shapes(self, block: nn.Module) -> dict[str, tuple[int, ...]]:
        """The shapes of all that is in their state."""
        own = block.state_dict()
        return {theirs: tuple(self._exported(key, own[key]).shape) for key, theirs in self.keys(block).items()}

    def extras(self, block: nn.Module) -> dict[str, tuple[int, ...]]:
        """The shapes of what may be in their state beside that."""
        own = block.state_dict()
        return {
            f"{theirs}.{key.rpartition('.')[2]}": tuple(own[key].shape)
            for theirs, ours in self.extra
            for key in own
            if key.startswith(f"{ours}.")
        }

    def _converted(self, key: str, value: Tensor) -> Tensor:
        layer = key.removesuffix(".weight")
        value = value.flatten(1) if layer in self.pointwise else value
        return value.flip(1) if layer in self.flipped else value

    def _exported(self, key: str, value: Tensor) -> Tensor:
        layer = key.removesuffix(".weight")
        value = value[:, :, None, None] if layer in self.pointwise else value
        return value.flip(1) if layer in self.flipped else value


def _squeeze_excite(fc1: str, fc2: str, norm: str = "norm") -> Callable[[Any], Names]:
    """``norm`` is what a batch norm behind the first layer is called, in the library that has one."""

    def names(block: se.SEBlock) -> Names:
        if block.one_layer:
            return {"fc": "fc"}
        return {"fc1": fc1, "fc2": fc2} | ({} if block.norm is None else {"norm": norm})

    return names


def same(*layers: str) -> Callable[[Any], Names]:
    """Layers that are called there as they are here."""
    return lambda _: {layer: layer for layer in layers}


def renamed(**names: str) -> Callable[[Any], Names]:
    """Layers that go by other names there; ``__`` stands for a dot."""
    return lambda _: {ours.replace("__", "."): theirs for ours, theirs in names.items()}


def _non_local(theta: str, phi: str, g: str, out: str, norm: str, pooled: str) -> Callable[[Any], Names]:
    """``pooled`` is what the keys' and the values' layers are called where a pooling follows them."""

    def names(block: published.NonLocal) -> Names:
        found = {"theta": theta, "phi": phi, "g": g, "out": out if block.norm is not None else out.removesuffix(".0")}
        for layer in ("phi", "g") if block.subsample else ():
            found[layer] = found[layer].replace(layer, pooled.format(layer), 1)
        return found | ({"norm": norm} if block.norm is not None else {})

    return names


def _scaled(block: published.NonLocal, scale: float, word: str) -> str | None:
    if abs(block.scale - scale) <= 1e-6 * scale:
        return None
    return f"its scale is {word}, {scale:.6g}, and the block's {block.scale:.6g}"


def _no_norm(block: se.SEBlock) -> str | None:
    if block.one_layer or block.pool != "mean":
        return f"it has two layers and means, and the block {1 if block.one_layer else 2} and pool={block.pool!r}"
    return None if block.norm is None else "it has no batch norm inside, and the block has one"


def _timm_pools(block: se.SEBlock) -> str | None:
    return (
        None if block.pool in ("mean", "half") else f"it has means, or half of them, and the block pool={block.pool!r}"
    )


def _relu_and_sigmoid(block: se.SEBlock) -> str | None:
    if (block.hidden_activation, block.activation) == ("relu", "sigmoid"):
        return _no_norm(block)
    return f"its activations are relu and sigmoid, and the block's {block.hidden_activation} and {block.activation}"


def _timm_non_local(block: published.NonLocal) -> str | None:
    if block.mode != "embedded_gaussian" or block.subsample or block.norm is None:
        return "it has mode='embedded_gaussian', subsample=False and norm=True, and the block has not"
    return _scaled(block, block.g.in_channels**-0.5, "channels ** -0.5")


def _mmcv_non_local(block: published.NonLocal) -> str | None:
    if block.mode != "embedded_gaussian":
        return _scaled(block, 1.0, "1")
    return _scaled(block, block.g.out_channels**-0.5, "hidden_channels ** -0.5")


LAYOUTS = (
    Layout("senet", se.SEBlock, _squeeze_excite("fc.0", "fc.2"), obstacle=_relu_and_sigmoid),
    Layout(
        "torchvision", se.SEBlock, _squeeze_excite("fc1", "fc2", "norm"), pointwise=("fc1", "fc2"), obstacle=_no_norm
    ),
    Layout(
        "timm", se.SEBlock, _squeeze_excite("fc1", "fc2", "bn"), pointwise=("fc", "fc1", "fc2"), obstacle=_timm_pools
    ),
    Layout(
        "timm_efficientnet",
        se.SEBlock,
        _squeeze_excite("conv_reduce", "conv_expand", "norm"),
        pointwise=("fc1", "fc2"),
        obstacle=_no_norm,
    ),
    Layout("ecanet", eca.ECABlock, same("conv")),
    Layout("timm", eca.ECABlock, same("conv")),
    Layout(
        "attention-module",
        published.CBAM,
        renamed(
            fc1="ChannelGate.mlp.1",
            fc2="ChannelGate.mlp.3",
            conv="SpatialGate.spatial.conv",
            norm="SpatialGate.spatial.bn",
        ),
    ),
    Layout(
        "timm",
        published.CBAM,
        renamed(fc1="channel.fc1", fc2="channel.fc2", conv="spatial.conv.conv", norm="spatial.conv.bn"),
        pointwise=("fc1", "fc2"),
        flipped=("conv",),
    ),
    Layout("coordattention", published.CoordinateAttention, same("conv1", "bn1", "conv_h", "conv_w")),
    Layout("mbv2_ca", published.CoordinateAttention, renamed(conv1="conv1", bn1="bn1", conv_h="conv2", conv_w="conv3")),
    Layout("timm", published.CoordinateAttention, same("conv1", "bn1", "conv_h", "conv_w")),
    Layout(
        "alexhex7",
        published.NonLocal,
        _non_local("theta", "phi", "g", "W.0", "W.1", "{}.0"),
        obstacle=lambda block: _scaled(block, 1.0, "1"),
    ),
    Layout(
        "mmcv",
        published.NonLocal,
        _non_local("theta.conv", "phi.conv", "g.conv", "conv_out.conv", "conv_out.bn", "{}.0"),
        folded=("out", "norm"),
        obstacle=_mmcv_non_local,
    ),
    Layout("timm", published.NonLocal, _non_local("t", "p", "g", "z", "norm", "{}"), obstacle=_timm_non_local),
    Layout("danet", published.PositionAttention, same("query_conv", "key_conv", "value_conv", "gamma")),
    Layout("danet", published.ChannelAttention, same("gamma")),
    Layout(
        "danet",
        published.DualAttention,
        renamed(
            position_in__0="conv5a.0",
            position_in__1="conv5a.1",
            position__gamma="sa.gamma",
            position__query_conv="sa.query_conv",
            position__key_conv="sa.key_conv",
            position__value_conv="sa.value_conv",
            position_out__0="conv51.0",
            position_out__1="conv51.1",
            channel_in__0="conv5c.0",
            channel_in__1="conv5c.1",
            channel__gamma="sc.gamma",
            channel_out__0="conv52.0",
            channel_out__1="conv52.1",
            conv_out="conv8.1",
        ),
        # Of the two branches by themselves, for the losses of training.
        extra=(("conv6.1", "conv_out"), ("conv7.1", "conv_out")),
    ),
    Layout(
        "leejunhyun",
        published.AttentionGate,
        renamed(x_conv="W_x.0", x_norm="W_x.1", g_conv="W_g.0", g_norm="W_g.1", psi="psi.0", psi_norm="psi.1"),
    ),
    Layout(
        "monai",
        published.AttentionGate,
        renamed(
            x_conv="W_x.0.conv", x_norm="W_x.1", g_conv="W_g.0.conv", g_norm="W_g.1", psi="psi.0.conv", psi_norm="psi.1"
        ),
    ),
    Layout(
        "attention-gated-networks",
        published.GridAttentionGate,
        renamed(theta="theta", phi="phi", psi="psi", W="W.0", norm="W.1"),
    ),
    Layout("pan", published.PixelAttention, same("conv")),
    Layout(
        "segmentation_models_pytorch",
        published.SCSE,
        renamed(fc1="cSE.1", fc2="cSE.3", conv="sSE.0"),
        pointwise=("fc1", "fc2"),
    ),
    Layout(
        "timm",
        published.GlobalContext,
        renamed(conv="conv_attn", fc1="mlp_scale.fc1", norm="mlp_scale.norm", fc2="mlp_scale.fc2"),
        pointwise=("fc1", "fc2"),
    ),
)

OTHER_FORMULA = (published.DualAttention, published.GridAttentionGate)
"""What computes another formula with identity=True, beside all whose gates become 2σ."""
