"""What the tests of every op are about: a block for each way through the kernels, beside its plain twin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests import parity
from tests.parity import clear_maxima, lay_out, run
from triton_attn import functional


@dataclass(frozen=True, eq=False)
class Subject:
    """A block, the sizes at which it is small, and what PyTorch's arithmetic or our promises leave open of it."""

    name: str
    make: Callable[[Any, int], nn.Module]
    """Makes the block of either package, for so many channels."""
    channels: int = 8
    size: tuple[int, int] = (5, 3)
    large: tuple[int, int, int] = (24, 20, 30)
    """Channels, height and width of a map that is several programs'."""
    signal: int = 0
    """How many channels a gating signal has, of blocks that take one."""
    is_op: bool = True
    """Whether all of a forward is one op. Others call networks between their kernels, and are compiled as formulas."""
    prepare: Callable[[nn.Module, Tensor], Tensor] = lambda _, x: x
    """Makes of a map one on which rounding decides nothing, where maxima are chosen."""
    dimmed: str = ""
    """How the names end of weights that must be small if a map of 3000s is to saturate no gate."""
    heavy: tuple[int, int, int] = (8, 20, 20)
    """Channels, height and width of a map whose sums over positions, or over channels, are beyond float16."""
    by_norms: bool = False
    """Whether a gradient's largest error is luck: rounding puts a hidden value on the other side of a ReLU, say."""
    takes_no_positions: bool = True
    """Whether there is a result for a map of none: PyTorch has no maximum of nothing, and no convolution."""
    alone: int = 3
    """Of y, dx and the shortcut's gradient, how many do not depend on the batch by a bit: products are a library's."""

    def __str__(self) -> str:
        return self.name

    @property
    def keywords(self) -> list[str]:
        return ["shortcut", "gating"] if self.signal else ["shortcut"]

    def build(self, channels: int = 0) -> parity.Build:
        return lambda package: filled(self.make(package, channels or self.channels))

    def twins(
        self, dtype: torch.dtype = torch.float32, channels: int = 0, seed: int = 0
    ) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(seed)
        return parity.twins(self.build(channels), dtype)

    def draw(
        self,
        *shape: int,
        dtype: torch.dtype = torch.float32,
        layout: str = "contiguous",
        exact: nn.Module | None = None,
        signal_size: tuple[int, int] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """The map, a shortcut and a signal, and y's gradient; ``exact`` is for maps on which rounding decides nothing.

        Without a shape it is the subject's own, of 2 images.
        """
        batch, channels, height, width = shape or (2, self.channels, *self.size)
        inputs = [torch.randn(batch, channels, height, width) for _ in range(2)]
        if self.signal:
            inputs.append(torch.randn(batch, self.signal, *(signal_size or (height, width))))
        if exact is not None:
            with torch.no_grad():
                inputs[0] = self.prepare(exact, inputs[0].double())
        grad = lay_out(torch.randn(batch, channels, height, width).to(dtype), layout)
        return [lay_out(t.to(dtype), layout) for t in inputs], grad

    def calls(self, inputs: list[Tensor]) -> list[tuple[list[Tensor], list[str]]]:
        """Inputs and keywords, with a shortcut and without one."""
        return [(inputs, self.keywords), ([inputs[0], *inputs[2:]], self.keywords[1:])]

    def compare(
        self,
        twins: tuple[nn.Module, nn.Module],
        inputs: list[Tensor],
        grad: Tensor,
        but: Collection[str] = (),
        **tolerance: Any,
    ) -> None:
        """The output and all gradients ``but`` some, with those of the twin in float64."""
        y, grads = run(twins[0], inputs, grad, self.keywords)
        exact_y, exact_grads = run(twins[1], [t.double() for t in inputs], grad.double(), self.keywords)
        names = ["y", "x", *self.keywords, *dict(twins[0].named_parameters())]
        for name, ours, right in zip(names, [y, *grads], [exact_y, *exact_grads], strict=True):
            if name not in but:
                torch.testing.assert_close(ours.double(), right, **tolerance)


def filled(block: nn.Module) -> nn.Module:
    """With γs and norms that are not zero, as published blocks have them at first."""
    with torch.no_grad():
        for key, parameter in block.named_parameters():
            if key.endswith("gamma"):
                parameter.fill_(0.8)
            elif "norm" in key and key.endswith("weight"):
                parameter.normal_(mean=1.0, std=0.2)
            elif "norm" in key:
                parameter.normal_(std=0.2)
    return block


def narrow_pixel(package: Any, channels: int) -> nn.Module:
    """Of fewer than 16 channels it has one hidden channel."""
    block = package.AttentionModule(max(channels, 16))
    if channels < 16:
        block.conv1, block.conv2 = nn.Conv2d(channels, 1, 1), nn.Conv2d(1, channels, 1)
    return block


def published(name: str, *more: Any, **options: Any) -> Callable[[Any, int], nn.Module]:
    """Their norms take statistics as they are: in training an image depends on its batch."""
    return lambda package, channels: getattr(package.published, name)(channels, *more, **options).eval()


def called_coordinate(package: Any, channels: int) -> nn.Module:
    """Its last layers are called, since somebody listens; else its multiply makes the gates."""
    block = published("CoordinateAttention")(package, channels)
    block.conv_h.register_forward_hook(lambda *_: None)
    return block


class Behind(nn.Module):
    """A block behind a batch norm of running statistics, which is part of its passes."""

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm, self.block = nn.BatchNorm2d(channels), block

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        y = self.block.behind(self.norm, x, shortcut)
        return self.block(self.norm(x), shortcut) if y is None else y


def behind(make: Callable[[Any, int], nn.Module]) -> Callable[[Any, int], nn.Module]:
    """These blocks, behind batch norms."""
    return lambda package, channels: Behind(make(package, channels), channels).eval()


def clear_behind(exact: nn.Module, x: Tensor) -> Tensor:
    """What ``clear_maxima`` makes is the map behind the norm."""
    norm: Any = exact.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    v = clear_maxima(exact.block, x)
    return (v - norm.bias[:, None, None]) / scale[:, None, None] + norm.running_mean[:, None, None]


class ByNetwork(nn.Module):
    """A gate by anybody's network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)

    def network(self, vector: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(nn.functional.gelu(self.fc1(vector))))

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return functional.gate_by(x, self.network, shortcut)


def mixed(subjects: Sequence[Subject], *values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every subject with all values, but first with others than the subject before: thinning keeps first ones."""
    found = []
    for i, subject in enumerate(subjects):
        rest = list(itertools.product(*values))
        found += [(subject, *rest[(i + j) % len(rest)]) for j in range(len(rest))]
    return found


CHANNEL, SPATIAL = {"large": (24, 28, 22)}, {"large": (24, 28, 22), "prepare": clear_maxima, "dimmed": "weight"}
POSITION = {"by_norms": True, "dimmed": "conv1.weight", "heavy": (64, 3, 5)}
STRIPS = {"large": (12, 35, 7), "is_op": False, "takes_no_positions": False}
WIDE = {"large": (300, 5, 7), "by_norms": True, "takes_no_positions": False, "is_op": False, "alone": 0}
SUBJECTS = (
    Subject("se", lambda p, c: p.SEBlock(c, 2), dimmed="fc1.weight", **CHANNEL),
    Subject("eca", lambda p, c: p.ECABlock(c, 5), dimmed="weight", **CHANNEL),
    Subject(
        "coordinate",
        lambda p, c: p.CoordinateAttention(c, 2),
        channels=4,
        dimmed="fc.weight",
        takes_no_positions=False,
        **CHANNEL,
    ),
    # A map larger than the window, and one smaller.
    Subject("cbam", lambda p, c: p.CBAM(c, 2), size=(9, 11), **SPATIAL),
    Subject("dual", lambda p, c: p.DualAttentionBlock(c, 2), **SPATIAL),
    # Tiles are padded: 1 hidden channel, and 5 hidden ones of 10.
    Subject("pixel", narrow_pixel, **POSITION),
    Subject("gate", lambda p, c: p.AttentionGate(c), channels=10, **POSITION),
    Subject("gate by a signal", lambda p, c: p.AttentionGate(c, 6), signal=6, by_norms=True, takes_no_positions=False),
    Subject(
        "wide pixel", narrow_pixel, channels=272, large=(272, 9, 7), by_norms=True, takes_no_positions=False, alone=0
    ),
    Subject("nonlocal, tiled", lambda p, c: p.NonLocalBlock(c), large=(32, 9, 10), by_norms=True),
    Subject("nonlocal, whole", lambda p, c: p.NonLocalBlock(c), channels=64, large=(96, 9, 10), by_norms=True, alone=1),
    Subject("simam", published("SimAM", identity=True), large=(5, 24, 22)),
    # Networks between kernels; their sums have parts of 512 positions, and of 64 channels.
    Subject("a network's gate", lambda _, c: ByNetwork(c), large=(24, 28, 22), is_op=False),
    Subject("scse", published("SCSE", 2), large=(70, 5, 7), is_op=False),
    Subject("global context", published("GlobalContext", hidden_channels=8), large=(5, 24, 22), is_op=False),
    Subject(
        "published cbam",
        published("CBAM", 2),
        large=(40, 9, 7),
        is_op=False,
        prepare=clear_maxima,
        takes_no_positions=False,
    ),
    Subject(
        "published cbam, normed",
        behind(published("CBAM", 2)),
        large=(40, 9, 7),
        is_op=False,
        prepare=clear_behind,
        takes_no_positions=False,
    ),
    Subject("published coordinate", published("CoordinateAttention"), **STRIPS),
    Subject("published coordinate, called", called_coordinate, **STRIPS),
    Subject("published coordinate, normed", behind(published("CoordinateAttention")), **STRIPS),
    Subject("published pixel", published("PixelAttention"), **WIDE),
    Subject("published gate", published("AttentionGate", 6), signal=6, **WIDE),
)
OPS = tuple(each for each in SUBJECTS if each.is_op)
