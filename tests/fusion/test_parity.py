"""Fused modules under the interpreter: the plain class's numbers, and the plain class's call where a call is due."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.layers import (
    GELU,
    BatNonLocalAttn,
    EcaModule,
    EffectiveSEModule,
    GlobalContext,
    NonLocalAttn,
    SelectiveKernel,
    SEModule,
    SplitAttn,
)
from timm.layers.cbam import CbamModule, ChannelAttn, LightChannelAttn, LightSpatialAttn, SpatialAttn
from timm.layers.coord_attn import CoordAttn, EfficientLocalAttn, SimpleCoordAttn, StripAttn
from timm.layers.eca import CecaModule
from timm.models import hgnet, resnet, senet, tresnet
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.quantization.mobilenetv3 import QuantizableSqueezeExcitation
from torchvision.ops import SqueezeExcitation

import triton_attn
from tests.fusion import kinds
from tests.parity import DTYPES, LAYOUTS, assert_within, away_from_the_kink, largest_error, lay_out, run
from triton_attn import functional
from triton_attn.fusion import swap

pytestmark = pytest.mark.interpreter

Build = Callable[[], nn.Module]

IN_ONE_OP: dict[str, Build] = {
    "timm se": lambda: SEModule(16),
    "timm se, hard sigmoid": lambda: SEModule(16, gate_layer="hard_sigmoid"),
    "timm se, both pools": lambda: SEModule(16, add_maxpool=True),
    "timm se, no biases": lambda: SEModule(16, bias=False),
    "timm se, nothing between the layers": lambda: SEModule(16, act_layer=nn.Identity),
    "timm squeeze-excite": lambda: SqueezeExcite(16),
    "timm squeeze-excite, silu": lambda: SqueezeExcite(16, act_layer=nn.SiLU),
    "timm squeeze-excite, gelu": lambda: SqueezeExcite(16, act_layer=GELU),
    "timm squeeze-excite, hard swish": lambda: SqueezeExcite(16, act_layer=nn.Hardswish),
    "timm squeeze-excite, leaky relu": lambda: SqueezeExcite(16, act_layer=nn.LeakyReLU),
    "timm senet": lambda: senet.SEModule(16, 4),
    "timm effective se": lambda: EffectiveSEModule(16),
    "timm effective se, both pools": lambda: EffectiveSEModule(16, add_maxpool=True),
    "timm ese": lambda: hgnet.EseModule(16),
    "timm eca": lambda: EcaModule(16),
    "timm cbam, channels": lambda: ChannelAttn(16),
    "torchvision se": lambda: SqueezeExcitation(16, 4),
    "torchvision se, hard sigmoid": lambda: SqueezeExcitation(16, 4, scale_activation=nn.Hardsigmoid),
    "torchvision se, quantizable": lambda: QuantizableSqueezeExcitation(16, 4),
    "one's own, linear layers": lambda: kinds.OwnSE(16),
}
BY_PARTS: dict[str, Build] = {
    "timm se, batch norm": lambda: SEModule(16, norm_layer=nn.BatchNorm2d),
    "timm se, both pools and a batch norm": lambda: SEModule(16, norm_layer=nn.BatchNorm2d, add_maxpool=True),
    "timm effective se, softsign": lambda: EffectiveSEModule(16, gate_layer=nn.Softsign),
    "timm squeeze-excite, mish": lambda: SqueezeExcite(16, act_layer=nn.Mish),
    "timm squeeze-excite, another leaky relu": lambda: SqueezeExcite(16, act_layer=partial(nn.LeakyReLU, 0.2)),
    "timm eca, two convolutions": lambda: EcaModule(16, use_mlp=True),
    "timm eca, circular": lambda: CecaModule(16),
    "timm cbam, channels": lambda: ChannelAttn(16, act_layer=nn.ReLU6),
    "timm cbam, channels, light": lambda: LightChannelAttn(16),
}
BY_POSITION: dict[str, Build] = {
    "timm cbam, positions": SpatialAttn,
    "timm cbam, positions, light": LightSpatialAttn,
    "timm cbam": lambda: CbamModule(16),
}
BY_STRIPS: dict[str, Build] = {
    "timm coordinate": lambda: CoordAttn(16, rd_channels=8),
    "timm local": lambda: EfficientLocalAttn(16),
}
BY_SUMS: dict[str, Build] = {
    "timm split attention": lambda: SplitAttn(16, radix=2),
    "timm split attention, groups and norms": lambda: SplitAttn(16, groups=2, norm_layer=nn.BatchNorm2d),
    "timm split attention, one map": lambda: SplitAttn(16, radix=1),
    "timm selective kernels": lambda: SelectiveKernel(16),
    "timm selective kernels, of all channels": lambda: SelectiveKernel(16, split_input=False),
    "timm global context": lambda: global_context(rd_channels=8),
    "timm global context, of the mean": lambda: GlobalContext(16, rd_channels=8, use_attn=False),
    "one's own, scSE": lambda: kinds.OwnSCSE(16),
}


def global_context(**options) -> nn.Module:
    """The bias of its convolution is taken out by the softmax again: its gradient would be rounding alone."""
    module = GlobalContext(16, **options)
    module.conv_attn.bias = None
    return module


BLOCKS: dict[str, Build] = {
    "timm resnet, basic": lambda: resnet.BasicBlock(16, 16, attn_layer=SEModule),
    "timm resnet, bottleneck": lambda: resnet.Bottleneck(16, 4, attn_layer=SEModule),
    "timm resnet, effective se": lambda: resnet.BasicBlock(16, 16, attn_layer=EffectiveSEModule),
    "timm resnet, by parts": lambda: resnet.BasicBlock(16, 16, attn_layer=CecaModule),
    "timm resnet, coordinate": lambda: resnet.BasicBlock(16, 16, attn_layer=CoordAttn),
    "timm resnet, positions": lambda: resnet.BasicBlock(16, 16, attn_layer=lambda *_, **__: SpatialAttn()),
    "timm senet, basic": lambda: senet.SEResNetBlock(16, 16, 1, 4),
    "timm senet, bottleneck": lambda: senet.SEResNetBottleneck(16, 4, 1, 4),
    "timm senet, senet's bottleneck": lambda: senet.SEBottleneck(16, 4, 1, 4),
    "timm senet, resnext's bottleneck": lambda: senet.SEResNeXtBottleneck(16, 4, 1, 4, base_width=64),
    "timm tresnet, basic": lambda: tresnet.BasicBlock(16, 16),
}


@pytest.fixture(autouse=True)
def _adapter_of_ones_own(monkeypatch) -> None:
    monkeypatch.setattr(swap, "_fused", {**swap.known()})
    triton_attn.register_adapter(kinds.FusedOwnSE)
    triton_attn.register_adapter(kinds.FusedOwnSCSE)


@pytest.fixture
def networks(monkeypatch) -> list[str]:
    """The pools of the gates that were computed by parts."""
    calls: list[str] = []
    plain = functional.gate_by

    def gate_by(x, network, shortcut=None, *, pool="mean"):
        calls.append(pool)
        return plain(x, network, shortcut, pool=pool)

    monkeypatch.setattr(functional, "gate_by", gate_by)
    return calls


def before_the_last_relu(block: nn.Module, x: Tensor) -> Tensor:
    block, seen = copy.deepcopy(block), []
    for each in block.modules():
        if isinstance(each, nn.ReLU):
            each.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        block(x)
    return seen[-1]


def check(build: Build, dtype: torch.dtype = torch.float32, layout: str = "contiguous", tail: bool = False) -> None:
    """Hold a fused module's output and all its gradients to the rule."""

    def draw(seed: int) -> tuple[nn.Module, Tensor, Tensor, list[Tensor], list[Tensor]]:
        torch.manual_seed(seed)
        plain = build().to(dtype)
        exact = copy.deepcopy(plain).double()
        x, grad = (lay_out(torch.randn(2, 16, 5, 7).to(dtype), layout) for _ in range(2))
        if tail:
            grad = away_from_the_kink(grad, before_the_last_relu(exact, x.double()))
        fused = copy.deepcopy(plain)
        y, grads = run(plain, [x], grad)
        exact_y, exact_grads = run(exact, [x.double()], grad.double())
        return fused, x, grad, [y, *grads], [exact_y, *exact_grads]

    fused, x, grad, plain, exact = draw(0)
    errors = [
        [largest_error(a, b) for a, b in zip(plain, exact, strict=True)]
        for *_, plain, exact in (draw(seed) for seed in range(8))
    ]
    assert not triton_attn.fuse(fused).left
    with triton_attn.use_backend("triton"):
        y, grads = run(fused, [x], grad)
    names = ["y", "gradient of x", *(f"gradient of {name}" for name, _ in fused.named_parameters())]
    for i, (name, ours) in enumerate(zip(names, [y, *grads], strict=True)):
        assert_within(ours, plain[i], exact[i], name, plain_error=max(each[i] for each in errors))


@pytest.mark.parametrize("name", IN_ONE_OP)
def test_in_one_op(name: str, networks: list[str]) -> None:
    (entry,) = triton_attn.fuse(IN_ONE_OP[name]())
    assert entry.note == "one op"
    check(IN_ONE_OP[name])
    assert networks == []


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", ["timm se", "timm eca"])
def test_in_every_layout(name: str, layout: str) -> None:
    check(IN_ONE_OP[name], layout=layout)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", ["timm se", "timm eca"])
def test_in_half_precision(name: str, dtype: torch.dtype) -> None:
    check(IN_ONE_OP[name], dtype)


# The dtypes below are a kernel's affair, and all of these have the same kernels: each has one, and all have some.
def each_with_a_dtype(names) -> list[tuple[str, torch.dtype]]:
    return [(name, DTYPES[i % 3]) for i, name in enumerate(names)]


@pytest.mark.parametrize(("name", "dtype"), each_with_a_dtype(BY_PARTS))
def test_by_parts(name: str, dtype: torch.dtype, networks: list[str]) -> None:
    (entry,) = triton_attn.fuse(BY_PARTS[name]())
    assert entry.note.startswith("by parts, gates in PyTorch: ")
    check(BY_PARTS[name], dtype)
    assert len(networks) == 1


@pytest.mark.parametrize(("name", "dtype"), each_with_a_dtype(BY_POSITION))
def test_by_position(name: str, dtype: torch.dtype) -> None:
    notes = {entry.note for entry in triton_attn.fuse(BY_POSITION[name]())}
    assert "by parts, gates in PyTorch: one for every position" in notes
    check(lambda: BY_POSITION[name]().eval(), dtype)


@pytest.mark.parametrize(("name", "dtype"), each_with_a_dtype(BY_STRIPS))
def test_by_strips(name: str, dtype: torch.dtype) -> None:
    (entry,) = triton_attn.fuse(BY_STRIPS[name]())
    assert entry.note == "by parts, gates in PyTorch: one for every row and column"
    check(lambda: BY_STRIPS[name]().eval(), dtype)


def test_a_skip_around_strips() -> None:
    module = CoordAttn(16, has_skip=True)
    (entry,) = triton_attn.fuse(module).left
    assert entry.note == "has_skip: the map is added"


@pytest.mark.parametrize("name", BY_SUMS)
def test_by_sums(name: str) -> None:
    (entry,) = triton_attn.fuse(BY_SUMS[name]())
    assert entry.note.startswith("by parts, gates in PyTorch: ")
    check(lambda: BY_SUMS[name]().eval(), layout="channels_last")


@pytest.mark.parametrize("name", ["timm split attention", "timm selective kernels"])
def test_what_split_attention_saves(name: str, monkeypatch) -> None:
    """Where the gates are multiplied, passes over the maps are saved; the convolutions in front are the library's."""
    from benchmarks.counted.meter import count

    plain = BY_SUMS[name]().eval()
    monkeypatch.setattr(functional, "is_untraced", lambda: True)  # the meter is a mode, but one that changes nothing
    fused, x = copy.deepcopy(plain), torch.randn(1, 16, 24, 24).requires_grad_()
    triton_attn.fuse(fused)
    moved = []
    for module in (plain, fused):
        parameters = list(module.parameters())
        with count(x, parameters) as counted:
            y = module(x)
            torch.autograd.grad(y, [x, *parameters], torch.ones_like(y))
        moved.append(counted.moved["map"] + counted.moved["vector"])
    assert moved[1] < 0.9 * moved[0]  # the convolutions in front included


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.attn.register_forward_hook(lambda *_: None), "attn has hooks"),
        (lambda m: setattr(m, "attn", nn.Sequential(m.attn)), "attn has hooks or another forward"),
    ],
)
def test_selective_kernels_with_other_attention(change, reason: str) -> None:
    module = SelectiveKernel(16)
    change(module)
    (entry,) = [each for each in triton_attn.fuse(module) if each.module == "SelectiveKernel"]
    assert not entry.fused
    assert reason in entry.note


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (GlobalContext(16, fuse_add=True), "fuse_add"),
        (GlobalContext(16, fuse_scale=False), "no fuse_scale"),
        (SimpleCoordAttn(16), "added before their sigmoid"),
        (StripAttn(16), "added before their sigmoid"),
        (BatNonLocalAttn(16), "no gate, and no softmax"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else each,
)
def test_left_with_a_reason(module: nn.Module, reason: str) -> None:
    (entry,) = triton_attn.fuse(module).left
    assert reason in entry.note


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.of_positions[0].register_forward_hook(lambda *_: None), "of_positions begins with"),
        (lambda m: m.of_channels.__setitem__(0, nn.AdaptiveMaxPool2d(1)), "of_channels begins with AdaptiveMaxPool2d"),
        (lambda m: m.of_channels.register_forward_hook(lambda *_: None), "no plain Sequential"),
    ],
)
def test_scse_of_other_layers(change, reason: str) -> None:
    module, x = kinds.OwnSCSE(16), torch.randn(2, 16, 5, 7)
    triton_attn.fuse(module)
    change(module)
    with triton_attn.use_backend("triton"), pytest.raises(triton_attn.BackendError, match=reason):
        module(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_local(dtype: torch.dtype) -> None:
    def build() -> nn.Module:
        module = NonLocalAttn(16).eval()
        nn.init.uniform_(module.norm.weight)
        return module

    (entry,) = triton_attn.fuse(build())
    assert entry.note == "attention in one op, between the module's own convolutions"
    check(build, dtype)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_inside(training: bool, networks: list[str]) -> None:
    plain = SEModule(16, norm_layer=nn.BatchNorm2d).train(training)
    plain.bn.running_mean.uniform_()
    fused, x = copy.deepcopy(plain), torch.randn(4, 16, 3, 5)
    triton_attn.fuse(fused)
    torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused.bn.running_mean, plain.bn.running_mean)
    assert fused.bn.num_batches_tracked == plain.bn.num_batches_tracked == int(training)
    assert networks == ["mean"]


@pytest.mark.parametrize(
    ("name", "dtype", "layout"),
    [
        *((name, torch.float32, "contiguous" if i % 2 else "channels_last") for i, name in enumerate(BLOCKS)),
        ("timm resnet, bottleneck", torch.float16, "channels_last"),
        ("timm resnet, by parts", torch.float16, "channels_last"),
    ],
)
def test_a_residual_block(name: str, dtype: torch.dtype, layout: str) -> None:
    (entry,) = triton_attn.fuse(BLOCKS[name]())
    assert entry.tail
    check(BLOCKS[name], dtype, layout, tail=True)


class Operators(TorchDispatchMode):
    """The names of all that are called."""

    def __enter__(self) -> set[str]:
        self.names: set[str] = set()
        super().__enter__()
        return self.names

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op._schema.name)
        return op(*args, **(kwargs or {}))


def test_shortcut_and_relu_come_with_gates_by_parts(monkeypatch) -> None:
    seen: list[Tensor] = []
    plain = functional.gate_by
    monkeypatch.setattr(functional, "gate_by", lambda *given, **named: seen.append(given[2]) or plain(*given, **named))
    block, x = BLOCKS["timm resnet, by parts"]().eval(), torch.randn(2, 16, 5, 7)
    triton_attn.fuse(block)
    block(x)
    assert seen[0] is x


# By parts nothing is fused while a mode watches the operators.
@pytest.mark.parametrize("name", [name for name in BLOCKS if "by parts" not in name])
def test_shortcut_and_relu_come_with_the_attention(name: str) -> None:
    block, x = BLOCKS[name]().eval(), torch.randn(2, 16, 5, 7)
    with Operators() as before:
        block(x)
    triton_attn.fuse(block)
    with Operators() as after:
        block(x)
    additions = {"aten::add", "aten::add_"}
    assert "aten::mul" in before - after
    assert before & additions
    assert not after & additions
