"""What the lane executes: a block or a function on one input, forward and backward, held to the rule on numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import triton_attn
from tests import parity
from tests.parity import DTYPES
from triton_attn import functional
from triton_attn.reference.non_local import attend_explicit, nonlocal_attention
from triton_attn.registry import ALL, PUBLISHED

from .hook import Executor
from .program import BACKWARDS, DRAWN, Order

NAMES = ("se", "eca", "cbam", "coordinate", "dual", "nonlocal", "gate", "pixel")  # what is drawn goes by their order
NON_LOCAL = "nonlocal_attention"
CHANNEL_GATE = "channel_gate"
GATE_BY = "gate_by"
NORMED = "batch norm and gate"
NORMED_STRIPS, NORMED_CBAM = "batch norm and published.coordinate", "batch norm and published.cbam"
STRIPS, CBAM_BY = "published.coordinate", "published.cbam"
SCSE, CONTEXT, SIMAM = "published.scse", "published.global_context", "published.simam"
NO_BIAS = (("bias", False),)  # in front of a batch norm its gradient is rounding alone
TRAINING = (("training", True),)
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Configuration:
    """A case of the lane.

    Attributes:
        name: of a block, as ``create_attention`` has it, or of a function, ``"nonlocal_attention"``,
            ``"channel_gate"``, ``"gate_by"``, or the second with a batch norm, whose options are the norm's then. A
            block with a batch norm in front has options too that are the norm's.
        shape: ``(N, C, H, W)``, or of non-local attention ``(L, S, d, dv)``.
        layout: of the map; for that function ``"channels_last"`` has each position's channels side by side.
        gating_channels: of the attention gate's own signal, with a map half as high and wide.
        tied: whether many values of the map are equal, and with them maxima.
        training: whether there is a backward.
        needs: of what it computes gradients: ``"all"``, ``"map"``, ``"weights"``, ``"shortcut"``; or ``"v"``, of that
            function; or ``"nothing"``, of a block behind a batch norm.
        options: more arguments of a function, or of a block.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    with_shortcut: bool = False
    gating_channels: int | None = None
    tied: bool = False
    training: bool = True
    needs: str = "all"
    options: tuple[tuple[str, Any], ...] = ()
    targets: tuple[str, ...] = ("sm_80",)
    order: Order = field(default_factory=Order)

    def __str__(self) -> str:
        options = [word for word, wanted in (("shortcut", self.with_shortcut), ("tied", self.tied)) if wanted]
        options += [f"gating {self.gating_channels}"] if self.gating_channels else []
        options += [] if self.training else ["inference"]
        options += [] if self.needs == "all" else [f"{self.needs} alone"]
        options += [f"{name} {value}" for name, value in self.options]
        options += [] if self.targets == ("sm_80",) else [self.targets[0]]
        options += [] if self.order == Order() else [f"order {self.order.programs}{self.order.warps}{self.order.lanes}"]
        size = "x".join(map(str, self.shape))
        return " ".join([self.name, size, str(self.dtype).removeprefix("torch."), self.layout, *options])


def build(configuration: Configuration, package: ModuleType) -> nn.Module:
    """The configuration's block, of either package."""
    channels = configuration.shape[1]
    arguments = (channels,) if configuration.gating_channels is None else (channels, configuration.gating_channels)
    family = package.published if configuration.name in PUBLISHED else package
    options = dict(configuration.options)
    block: nn.Module = getattr(family, ALL[configuration.name].__name__)(*arguments, **options)
    if configuration.name in ("gate", "pixel") and configuration.dtype != torch.float32:
        with torch.no_grad():  # away from the hidden ReLU's kink, where rounding would decide
            block.conv1.bias[::2] += 4
            block.conv1.bias[1::2] -= 4
    return block


def results(configuration: Configuration) -> list[Tensor]:
    """The output and the gradients, of one fixed input, by the backend in force."""
    torch.manual_seed(0)
    if configuration.name == NON_LOCAL:
        inputs, grad = _attention_inputs(configuration, 0)
        if configuration.needs == "v":
            q, k, v = inputs
            y = functional.nonlocal_attention(q, k, v.requires_grad_())
            return [y.detach(), *torch.autograd.grad(y, v, grad)]
        return _attend(functional.nonlocal_attention, inputs, grad, dict(configuration.options))
    if configuration.name in (CHANNEL_GATE, GATE_BY):
        return _gate_channels(configuration)
    if configuration.name == NORMED:
        return _gate_normed(configuration)
    if configuration.name in (NORMED_STRIPS, NORMED_CBAM):
        return _block_normed(configuration)
    block = build(configuration, triton_attn).to(configuration.dtype)
    batch, _, height, width = configuration.shape
    x, shortcut, grad = (_map(configuration, configuration.shape) for _ in range(3))
    others = {"shortcut": shortcut} if configuration.with_shortcut else {}
    if configuration.gating_channels is not None:
        size = (batch, configuration.gating_channels, -(-height // 2), -(-width // 2))
        others["gating"] = _map(configuration, size)
    if not configuration.training:
        with torch.no_grad():
            return [block.eval()(x, **others)]
    if configuration.needs == "all":
        y, grads = parity.run(block, [x, *others.values()], grad, list(others))
        return [y, *grads]
    block.requires_grad_(configuration.needs == "weights")
    leaves = {"map": [x], "weights": list(block.parameters()), "shortcut": [shortcut]}[configuration.needs]
    for leaf in leaves:
        leaf.requires_grad_()
    y = block(x, **others)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def _gate_channels(configuration: Configuration) -> list[Tensor]:
    channels, hidden = configuration.shape[1], configuration.shape[1] // 4
    x, grad = (_map(configuration, configuration.shape) for _ in range(2))
    sizes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    leaves = [x, *((torch.randn(size) / channels**0.5).to(configuration.dtype) for size in sizes)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    options = dict(configuration.options)
    with torch.set_grad_enabled(configuration.training):
        if configuration.name == GATE_BY:
            leaves = leaves[:1]
            y = functional.gate_by(x, lambda *vectors: torch.sigmoid(sum(vectors)), **options)
        elif options.pop("layers", 2) == 1:
            leaves = [x, (torch.randn(channels, channels) / channels**0.5).to(configuration.dtype).requires_grad_()]
            y = functional.channel_gate(*leaves, None, None, None, **options)
        else:
            y = functional.channel_gate(*leaves, **options)
    if not configuration.training:
        return [y.detach()]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def _gate_normed(configuration: Configuration) -> list[Tensor]:
    channels, hidden = configuration.shape[1], configuration.shape[1] // 4
    x, shortcut, grad = (_map(configuration, configuration.shape) for _ in range(3))
    sizes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    weights = [(torch.randn(size) / channels**0.5).to(configuration.dtype) for size in sizes]
    weight, bias, mean = (torch.randn(channels) for _ in range(3))
    norm = functional.BatchNorm(weight, bias, mean, torch.rand(channels) + 0.5, **dict(configuration.options))
    leaves = [x, *((weight, bias, *weights) if configuration.needs == "all" else ())]
    leaves += [shortcut] if configuration.with_shortcut else []
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with torch.set_grad_enabled(configuration.training):
        y = functional.channel_gate(x, *weights, shortcut if configuration.with_shortcut else None, norm=norm)
    if not configuration.training:
        return [y.detach(), mean]
    return [y.detach(), mean, *torch.autograd.grad(y, leaves, grad)]


def _block_normed(configuration: Configuration) -> list[Tensor]:
    channels, (_, name) = configuration.shape[1], configuration.name.split(" and ")
    block = ALL[name](channels, bias=False).eval().to(configuration.dtype)
    norm = nn.BatchNorm2d(channels, affine=configuration.needs == "all", **dict(configuration.options))
    norm.train(configuration.training)
    for each in norm.parameters():
        nn.init.normal_(each)
    x, shortcut, grad = (_map(configuration, configuration.shape) for _ in range(3))
    leaves = [x, *norm.parameters()]  # the networks between are PyTorch's
    leaves += [shortcut] if configuration.with_shortcut else []
    leaves = [leaf.requires_grad_() for leaf in leaves]
    given = shortcut if configuration.with_shortcut else None
    with torch.set_grad_enabled(configuration.needs != "nothing"):
        y = block.behind(norm, x, given)
        y = block(norm(x), given) if y is None else y
    running = [each for each in norm.buffers() if each.is_floating_point()]
    if configuration.needs == "nothing":
        return [y, *running]
    return [y.detach(), *running, *torch.autograd.grad(y, leaves, grad)]


def _map(configuration: Configuration, size: Sequence[int]) -> Tensor:
    values = torch.randn(*size)
    if configuration.tied:
        values = values.round()
    return parity.lay_out(values.to(configuration.dtype), configuration.layout)


def check(configuration: Configuration) -> Executor:
    """Execute it, and hold every result to the rule.

    Returns:
        The executor, which knows the launches and what a GPU would punish.

    Raises:
        AssertionError: a result is off.
    """
    executor = Executor(configuration.targets, configuration.order)
    with executor.installed():
        if configuration.name == NON_LOCAL and configuration.needs == "all":
            _check_attention(configuration)
        elif (
            configuration.name in (CHANNEL_GATE, GATE_BY, NORMED, NORMED_STRIPS, NORMED_CBAM)
            or configuration.gating_channels is not None
            or configuration.needs != "all"
            or not configuration.training
        ):
            _check_results(configuration)
        else:
            parity.check_block(
                lambda package: build(configuration, package),
                configuration.shape,
                configuration.dtype,
                configuration.layout,
                with_shortcut=configuration.with_shortcut,
                prepare=_prepared(configuration),
                any_order=configuration.name not in ("cbam", "dual", STRIPS, CBAM_BY),
            )
    return executor


def _prepared(configuration: Configuration) -> Any:
    if configuration.name in ("cbam", "dual", CBAM_BY):
        return parity.clear_maxima
    return (lambda _, x: x.round()) if configuration.tied else (lambda _, x: x)


def _check_results(configuration: Configuration) -> None:
    """Against the plain block in float64, with ten times the rounding of its dtype: where the rule has no helper."""
    with triton_attn.use_backend("triton"):
        ours = results(configuration)
    with triton_attn.use_backend("reference"):
        plain = results(configuration)
    for ours_i, plain_i in zip(ours, plain, strict=True):
        error = (ours_i.double() - plain_i.double()).abs().max()
        assert error <= 10 * torch.finfo(configuration.dtype).eps * plain_i.double().abs().max()


def _attention_inputs(configuration: Configuration, seed: int) -> tuple[list[Tensor], Tensor]:
    length, source, d, dv = configuration.shape
    torch.manual_seed(seed)
    found = []
    for size, scale in (((length, d), d**-0.25), ((source, d), d**-0.25), ((source, dv), 1), ((length, dv), 1)):
        if configuration.layout == "channels_last":
            drawn = torch.randn(2, *size)
        else:
            drawn = torch.randn(2, *size[::-1]).transpose(1, 2)
        found.append((drawn * scale).to(configuration.dtype))
    return found[:3], found[3]


def _attend(function: Any, inputs: Sequence[Tensor], grad: Tensor, options: dict[str, Any]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def _check_attention(configuration: Configuration) -> None:
    errors, drawn, options = [], [], dict(configuration.options)
    for seed in (2, 1, 0):
        inputs, grad = _attention_inputs(configuration, seed)
        plain = _attend(nonlocal_attention, inputs, grad, options)
        exact = _attend(attend_explicit, [t.double() for t in inputs], grad.double(), options)
        drawn = [inputs, grad, plain, exact]
        errors.append([parity.largest_error(a, b) for a, b in zip(plain, exact, strict=True)])
    inputs, grad, plain, exact = drawn
    with triton_attn.use_backend("triton"):
        ours = _attend(functional.nonlocal_attention, inputs, grad, options)
    for i, what in enumerate(("y", "q", "k", "v")):
        parity.assert_within(ours[i], plain[i], exact[i], what, plain_error=max(each[i] for each in errors))


F32, F16, BF16 = DTYPES
NEXT = ("sm_90", "sm_80")  # kernels without a product; others are executed for sm_80
# Every kernel in both widths and layouts, and every flag and name that it takes, by one configuration of several that
# start the same kernels with the same flags: the drawn sweep has the others. At (7, 300, 48, 8) an H200 once read where
# nothing is.
FIXED = (
    *(
        Configuration(name, (2, 32, 5, 7), BF16, layout, with_shortcut=True)
        for layout, names in (("contiguous", ("nonlocal", "pixel")), ("channels_last", ("dual", "gate")))
        for name in names
    ),
    Configuration("eca", (1, 16, 4, 4), F16, "channels_last", targets=NEXT),
    Configuration("cbam", (1, 16, 4, 4), F32, needs="map", targets=NEXT),
    Configuration("se", (1, 16, 3, 3), F32, needs="weights"),
    *(Configuration(name, (1, 16, 8, 8), BF16, training=False) for name in ("eca", "cbam")),
    Configuration(CHANNEL_GATE, (2, 24, 5, 6), F32, options=(("pool", "max"), ("hidden_activation", "none"))),
    *(
        Configuration(CHANNEL_GATE, (2, 24, 5, 6), dtype, options=(("hidden_activation", hidden), ("activation", gate)))
        for dtype, hidden, gate in (
            (F32, "silu", "hard_sigmoid"),
            (BF16, "hardswish", "double_sigmoid"),
            (F32, "gelu", "one_plus"),
            (F16, "gelu_tanh", "double_hard_sigmoid"),
            (F32, "leaky_relu", "none"),
        )
    ),
    Configuration(CHANNEL_GATE, (17, 40, 3, 3), BF16, "channels_last", options=(("pool", "half"), ("layers", 1))),
    Configuration(CHANNEL_GATE, (2, 600, 1, 2), F32, "channels_last", options=(("pool", "both"),)),
    # Over 32 hidden units every layer has a launch of its own.
    Configuration(CHANNEL_GATE, (2, 140, 3, 3), BF16, options=(("pool", "half"), ("hidden_activation", "silu"))),
    Configuration(CHANNEL_GATE, (2, 140, 3, 3), F32, training=False),
    Configuration(CHANNEL_GATE, (2, 140, 2, 2), F32, "channels_last", options=(("pool", "max"),)),
    Configuration("dual", (1, 40, 3, 3), F32, options=(("reduction", 1),)),
    # Of CBAM's convolution a block in pieces, and seven rows that are not one piece of the map.
    Configuration("cbam", (1, 16, 2, 140), F32),
    Configuration(GATE_BY, (2, 24, 9, 31), F32, options=(("pool", "both"),)),
    Configuration(GATE_BY, (2, 24, 5, 6), BF16, options=(("pool", "max"),), training=False),
    Configuration(NORMED, (2, 16, 23, 23), BF16, "channels_last", options=(*TRAINING, ("activation", "silu"))),
    Configuration(NORMED, (17, 8, 3, 3), F32, options=(*TRAINING, ("activation", "relu")), needs="map", targets=NEXT),
    Configuration(NORMED, (2, 24, 5, 6), F32, "channels_last", with_shortcut=True, needs="map"),
    Configuration(NORMED, (2, 24, 5, 6), F32, options=(("activation", "hardswish"),)),
    Configuration(STRIPS, (1, 3, 4, 133), F16, with_shortcut=True, options=NO_BIAS, targets=NEXT),
    Configuration(STRIPS, (2, 12, 5, 7), F32, "channels_last", needs="map"),
    Configuration(NORMED_STRIPS, (2, 12, 5, 7), F32, with_shortcut=True, targets=NEXT),
    Configuration(NORMED_STRIPS, (1, 24, 35, 3), BF16, "channels_last"),
    Configuration(NORMED_STRIPS, (2, 12, 5, 7), F32, "channels_last", training=False, needs="map", with_shortcut=True),
    Configuration(NORMED_CBAM, (2, 24, 5, 7), F32, with_shortcut=True, targets=NEXT),
    Configuration(NORMED_CBAM, (1, 40, 23, 23), F32, "channels_last"),
    Configuration(NORMED_CBAM, (2, 16, 5, 7), F32, "channels_last", training=False, needs="map", with_shortcut=True),
    Configuration(NORMED_CBAM, (1, 16, 3, 3), F32, needs="nothing"),
    Configuration(CBAM_BY, (1, 16, 3, 3), BF16, "channels_last", with_shortcut=True, training=False, targets=NEXT),
    Configuration(SCSE, (2, 32, 5, 7), F32, with_shortcut=True),
    Configuration(SCSE, (2, 72, 5, 7), BF16, "channels_last", targets=NEXT),
    # The bias of its convolution has a gradient of rounding alone.
    Configuration(CONTEXT, (2, 32, 5, 7), F32, needs="map", with_shortcut=True),
    Configuration(SIMAM, (2, 12, 5, 7), F32, with_shortcut=True),
    Configuration(SIMAM, (1, 72, 23, 23), BF16, "channels_last", options=(("identity", True),), targets=NEXT),
    Configuration("eca", (2, 32, 5, 7), F32, needs="map"),
    Configuration("gate", (2, 32, 5, 7), F32, needs="map"),
    Configuration("gate", (2, 32, 5, 7), F32, needs="weights"),
    Configuration("gate", (1, 200, 3, 7), F32, needs="weights"),
    Configuration("gate", (1, 200, 3, 7), F32, needs="shortcut", with_shortcut=True),
    Configuration(NON_LOCAL, (33, 40, 24, 20), F32, "channels_last", needs="v"),
    Configuration("nonlocal", (1, 64, 3, 3), F32, with_shortcut=True),
    Configuration("nonlocal", (1, 64, 3, 3), BF16, "channels_last", with_shortcut=True, training=False),
    Configuration("se", (3, 40, 9, 31), F32, "contiguous", with_shortcut=True),
    Configuration("coordinate", (1, 16, 23, 25), BF16, "channels_last", tied=True, targets=NEXT),
    Configuration("gate", (2, 32, 6, 6), F32, "channels_last", with_shortcut=True, gating_channels=12),
    Configuration("pixel", (1, 272, 3, 3), F16, "channels_last", with_shortcut=True),
    Configuration("nonlocal", (1, 16, 17, 19), F32, "contiguous"),
    Configuration("nonlocal", (1, 172, 2, 130), BF16, "channels_last", with_shortcut=True),
    Configuration("nonlocal", (1, 172, 2, 130), F16),
    Configuration(NON_LOCAL, (7, 270, 64, 200), F16, options=(("scale", -0.5),)),
    Configuration(NON_LOCAL, (7, 300, 48, 8), F32, "channels_last"),
    Configuration(NON_LOCAL, (7, 300, 48, 8), BF16, "channels_last"),
    Configuration(NON_LOCAL, (33, 40, 72, 20), F32, "channels_last", options=(("scale", -0.5),)),
    Configuration(NON_LOCAL, (20, 20, 64, 96), F16, "contiguous", options=(("scale", -0.5),)),
)
ORDERS = (Order(BACKWARDS, BACKWARDS, BACKWARDS), Order(DRAWN, DRAWN, DRAWN, 5))


def drawn(seed: int) -> Configuration:
    """A configuration that goes by the seed alone."""
    chance = random.Random(seed)
    dtype, layout, targets = chance.choice(DTYPES), chance.choice(LAYOUTS), chance.choice((("sm_80",), NEXT))
    order = Order(*(chance.randrange(3) for _ in range(3)), seed)
    name = chance.choice([*NAMES, NON_LOCAL])
    if name == NON_LOCAL:
        shape = tuple(chance.randint(1, most) for most in (150, 150, 72, 100))
        return Configuration(name, shape, dtype, layout, targets=targets, order=order)
    channels = 16 * chance.randint(1, 6) if name == "pixel" else 2 * chance.randint(8, 40)
    shape = (chance.randint(1, 3), channels, chance.randint(1, 13), chance.randint(1, 13))
    return Configuration(
        name,
        shape,
        dtype,
        layout,
        with_shortcut=chance.random() < 0.5,
        tied=name == "coordinate" and chance.random() < 0.5,
        targets=targets,
        order=order,
    )
