"""Which cases each suite has, by size; of those that the claims are about the most wanted come first.

Sizes: ``tiny`` tries that a suite runs, ``small`` is a CPU's, ``goal`` what is claimed of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import product

from benchmarks import SITES
from triton_attn.registry import list_attention

FORWARD, BACKWARD, TRAINING, INFERENCE = "forward", "backward", "training", "inference"  # training is both ways
WAYS, MODES = (FORWARD, BACKWARD, TRAINING), (TRAINING, INFERENCE)


class Case:
    """The base of all: a case is called by its fields."""

    own = "ours"  # what ours is called

    def __str__(self) -> str:
        fields = astuple(self)  # type: ignore[call-overload]
        return "-".join("x".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in fields)


SMALL_SITES = {"layer2": (8, 512, 28, 28), "layer3": (8, 1024, 14, 14)}
TINY = ("tiny", (2, 32, 7, 7), "float32", "channels_last")
GOAL_SITES = ("layer1", "layer3", "layer2", "layer4", "stem")
GOAL_BLOCKS = ("se", "cbam", "eca", "nonlocal", "coordinate", "dual", "gate", "pixel")


@dataclass(frozen=True)
class BlockCase(Case):
    """A block on a map, one way or both."""

    block: str
    site: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str
    direction: str


def blocks(size: str) -> Iterator[BlockCase]:
    """Every block at ResNet-50's sites."""
    if size == "tiny":
        yield from (BlockCase(block, *TINY, TRAINING) for block in ("se", "gate"))
    elif size == "goal":
        for way, site, block in product((TRAINING, FORWARD, BACKWARD), GOAL_SITES, GOAL_BLOCKS):
            yield BlockCase(block, site, SITES[site], "bfloat16", "channels_last", way)
    else:
        for block, site, layout, way in product(list_attention(), SMALL_SITES, ("contiguous", "channels_last"), WAYS):
            yield BlockCase(block, site, SMALL_SITES[site], "float32", layout, way)


def calls(size: str) -> Iterator[BlockCase]:
    """Blocks at batch 16 and 1, on the largest map of a stage and on the smallest: there Python's time decides."""
    if size == "tiny":
        yield from (BlockCase("se", *TINY, way) for way in (TRAINING, FORWARD))
    elif size != "small":  # on a CPU it is what blocks are
        for batch, site, block, way in product((16, 1), ("layer1", "layer4"), GOAL_BLOCKS, (TRAINING, FORWARD)):
            yield BlockCase(block, site, (batch, *SITES[site][1:]), "bfloat16", "channels_last", way)


WIDTHS = {"stem": (32, 64), "layer1": (128, 256), "layer2": (256, 512), "layer3": (512, 1024), "layer4": (1024, 2048)}
STRIDES = {"stem": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}  # the stem's map before its pooling


@dataclass(frozen=True)
class AttentionCase(Case):
    """Attention of every position of a map to every other; q, k and v position by position."""

    site: str
    image: int
    batch: int
    dtype: str
    direction: str

    @property
    def positions(self) -> int:
        return (self.image // STRIDES[self.site]) ** 2

    def __str__(self) -> str:
        return f"{self.site}-{self.image}-batch{self.batch}-{self.dtype}-{self.direction}"


def nonlocals(size: str) -> Iterator[AttentionCase]:
    """q, k and v as ResNet-50's non-local blocks make them; on a CPU the stem's, at maps of 28², 56² and 112²."""
    if size == "goal":
        wanted = [("layer1", 224, 64), ("stem", 224, 64), ("layer3", 224, 64)]
        wanted += [("stem", image, 1) for image in (224, 512, 1024)]
        batches = ((64, 224), (16, 224), (1, 224), (1, 512), (1, 1024))
        wanted += [(site, image, batch) for (batch, image), site in product(batches, GOAL_SITES)]
        for (site, image, batch), way in product(dict.fromkeys(wanted), (FORWARD, BACKWARD)):
            yield AttentionCase(site, image, batch, "bfloat16", way)
    else:
        sides = (8,) if size == "tiny" else (28, 56, 112)
        for side, way in product(sides, WAYS):
            yield AttentionCase("stem", 2 * side, 1, "float32", way)


WHERE = ("block", "stem+layer4")
GOAL_NETWORKS = [("se", "block"), ("eca", "block"), ("cbam", "block")]
GOAL_NETWORKS += [("nonlocal", "stem+layer4"), ("se", "stem+layer4")]


@dataclass(frozen=True)
class NetworkCase(Case):
    """A network with attention, on a batch of images. Compiled ones are cases of their own: they take minutes."""

    network: str
    attention: str
    where: str
    batch: int
    image: int
    dtype: str
    layout: str
    mode: str
    compiled: bool = False

    # What attention adds is a small part of a network's time: on a CPU a few rounds more tell it.
    least_rounds = 11

    @property
    def own(self) -> str:  # type: ignore[override]
        return "ours-compile" if self.compiled else "ours"

    def __str__(self) -> str:
        images, kind = f"{self.batch}x{self.image}", ("compiled",) if self.compiled else ()
        return "-".join((self.network, self.attention, self.where, images, self.dtype, self.layout, self.mode, *kind))


def models(size: str) -> Iterator[NetworkCase]:
    """ResNet-50 with every attention, in every block, and behind the stem and the last stage."""
    every = [(name, where) for where in WHERE for name in list_attention()]
    if size == "tiny":
        yield NetworkCase("resnet18", "se", "layer4", 2, 32, "float32", "channels_last", TRAINING)
    elif size == "small":
        for (name, where), mode in product(every, MODES):
            yield NetworkCase("resnet50", name, where, 2, 112, "float32", "contiguous", mode)
    else:
        rest = [each for each in every if each not in GOAL_NETWORKS]
        order = ((GOAL_NETWORKS, False), (GOAL_NETWORKS[:1], True), (rest, False), ([*GOAL_NETWORKS[1:], *rest], True))
        for chosen, compiled in order:
            for (name, where), mode in product(chosen, MODES):
                yield NetworkCase("resnet50", name, where, 64, 224, "bfloat16", "channels_last", mode, compiled)


# By suite; each is a test of that name, and leaves a file of that name.
SUITES: dict[str, Callable[[str], Iterable[Case]]] = {
    "blocks": blocks,
    "calls": calls,
    "nonlocal": nonlocals,
    "models": models,
}
