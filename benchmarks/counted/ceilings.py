"""What a block may move and launch: the design's promise, which ``benchmarks.counted.traffic --check`` holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

ALLOWED = 1.02  # of the passes over the map: small tensors are within the allowance
SECTORS_ALLOWED = 1.15  # of the bytes


@dataclass(frozen=True)
class Ceiling:
    """Passes over the map, in T, without a shortcut; launches; and up to how many channels both hold.

    A spatial gate needs ``position_values``, float32, written and read, at every position: little beside many channels.
    A shortcut adds a pass forward (its read) and one backward (its gradient's write), and a mask of one bit per
    element, which is written once and read by ``mask_reads`` of the backward's launches.
    """

    forward: float
    backward: float
    mask_reads: int
    launches: tuple[int, int] | None = None
    channels: int | None = None
    position_values: tuple[int, int] = (0, 0)
    sectors: float = SECTORS_ALLOWED

    def passes(self, with_shortcut: bool, itemsize: int, channels: int) -> tuple[float, float]:
        """T forward and backward."""
        forward, backward = (4 * values / (channels * itemsize) for values in self.position_values)
        forward, backward = forward + self.forward, backward + self.backward
        if not with_shortcut:
            return forward, backward
        bits = 1 / (8 * itemsize)
        return forward + 1 + bits, backward + 1 + self.mask_reads * bits


# Parts of the parameters' gradients are one for 16 images, and here for two.
SQUEEZE = Ceiling(3, 4.03, mask_reads=2, launches=(3, 3))
# Forward the two pooled values are written, read with a border of three rows, and written whole, and the gate is
# written and read. Backward there is room for most of what positions need in the pass that 5 T leave free of 6.
BOTH_POOLS = Ceiling(4, 6, mask_reads=3, launches=(6, 8), position_values=(12, 4))

# By what is counted: a block, or a block on a certain input.
CEILINGS = {
    "se": SQUEEZE,
    "eca": SQUEEZE,
    # Sums of the batch norm are vectors of every span, and of the batch. Running statistics take four launches here,
    # one on a GPU.
    "se, behind a batch norm": Ceiling(3.05, 5.05, mask_reads=2, launches=(8, 5)),
    "se, behind a batch norm in evaluation": Ceiling(3.05, 4.05, mask_reads=2, launches=(4, 5)),
    # An activation bends the mean: the squeeze reads again, in evaluation x is read again for the gradient.
    "se, behind a batch norm and ReLU": Ceiling(4.05, 5.1, mask_reads=2, launches=(8, 5)),
    "se, behind a batch norm and ReLU in evaluation": Ceiling(3.05, 5.1, mask_reads=2, launches=(3, 5)),
    "eca, behind a batch norm": Ceiling(3.05, 5.05, mask_reads=2, launches=(8, 5)),
    "eca, behind a batch norm in evaluation": Ceiling(3.05, 4.05, mask_reads=2, launches=(4, 5)),
    # Every span of the multiply's backward reads two vectors more where maxima are pooled; where they are, is asked of
    # the maxima's parts once more.
    "coordinate": Ceiling(3.01, 4.08, mask_reads=2, launches=(3, 3)),
    "coordinate, maxima tied": Ceiling(3.01, 5, mask_reads=2, launches=(3, 3)),
    "cbam": BOTH_POOLS,
    "dual": replace(BOTH_POOLS, launches=(8, 11)),
    "pixel": Ceiling(2, 3, mask_reads=1, channels=256),
    "gate": Ceiling(2, 3, mask_reads=1, channels=256),
    # The design names no passes for these: x and y, the signal, and its convolution, of half the channels, written and
    # read. Backward: the gradients of them all, and x and the signal once more.
    "gate, own signal": Ceiling(4, 6.5, mask_reads=1, channels=256),
    # The passes of the published blocks at 256 channels and 28² positions, and beside them what PyTorch's networks on
    # small tensors move: a plane of 4 bytes a value is a 128th of the map, coordinate's vectors a 14th.
    # Pixel's convolution is C → C: its weight and that one's gradient are a third of the map each.
    "published.cbam": Ceiling(4.4, 6, mask_reads=3),
    # Of coordinate's 3.11 + 4.22 are its kernels', the rest the network's between them.
    "published.coordinate": Ceiling(3.35, 4.67, mask_reads=2),
    # The first read finds the statistics too; x is read for its own gradient in training, and the norm's sums are one
    # more for each block of 64 positions.
    "published.cbam, behind a batch norm": Ceiling(4.5, 7.2, mask_reads=2, launches=(31, 38)),
    "published.cbam, behind a batch norm in evaluation": Ceiling(4.45, 6.2, mask_reads=2, launches=(27, 38)),
    # A program of 32 channels has 4 bytes of a position's mask. The means of x's rows and columns are written and read
    # in float32, for the norm's gradients too.
    "published.coordinate, behind a batch norm": Ceiling(3.65, 5.9, mask_reads=2, launches=(13, 14), sectors=1.2),
    "published.coordinate, behind a batch norm in evaluation": Ceiling(
        3.6, 4.9, mask_reads=2, launches=(8, 14), sectors=1.2
    ),
    # 5 + 8 passes by products alone, beside which the C×C matrix is a twelfth of the map here, and in part in float32.
    "published.channel": Ceiling(5.75, 12.2, mask_reads=1),
    # The multiply is 2 + 3, as the tutorial's; the rest are the library's convolutions and batch norms, half as wide,
    # of the map and of the signal, which is as large. The grid's stride, and behind its gate are two layers more.
    "published.gate": Ceiling(10.36, 20.2, mask_reads=1),
    "published.grid_gate": Ceiling(11.2, 23.2, mask_reads=1),
    "published.global_context": Ceiling(4.2, 6.35, mask_reads=2),
    "published.pixel": Ceiling(5.33, 11.65, mask_reads=1),
    "published.scse": Ceiling(3.2, 5.3, mask_reads=2),
    "published.simam": Ceiling(3.04, 5.1, mask_reads=2),
    # Every block of queries reads all keys and values again, from a cache: what the tiles of the shape that is counted
    # come to, where the explicit matrix takes three times as much. That memory is linear is held by tests. Three of the
    # launches are for what is exact about biases: zeros beside the queries', the sum of the values', the keys' zeros.
    "nonlocal": Ceiling(18.5, 40.5, mask_reads=1, launches=(5, 9)),
    # The same, with a quarter of the keys and the library's projections, batch norm and pooling; and on a map so small
    # that the softmax is kept. The explicit matrix moves 27 + 49 and 24 + 49 T.
    "published.nonlocal": Ceiling(16.3, 33.2, mask_reads=1),
    "published.position": Ceiling(9.65, 18.8, mask_reads=1),
}


def over(
    what: str,
    ceiling: Ceiling,
    with_shortcut: bool,
    itemsize: int,
    channels: int,
    moved: tuple[float, float],
    sectors: tuple[float, float],
    launches: tuple[int, int],
) -> list[str]:
    """A line for everything of ``what`` that is over its ceiling; pairs are forward and backward."""
    lines = []
    passes, allowed = ceiling.passes(with_shortcut, itemsize, channels), ceiling.launches
    for i, direction in enumerate(("forward", "backward")):
        if moved[i] > passes[i] * ALLOWED:
            lines.append(f"{what}: {direction} moves {moved[i]:.3f} T, ceiling {passes[i]:.3f} T")
        if sectors[i] > ceiling.sectors:
            lines.append(f"{what}: {direction} touches {sectors[i]:.3f} of its bytes, ceiling {ceiling.sectors}")
        if allowed is not None and launches[i] > allowed[i]:
            lines.append(f"{what}: {direction} starts {launches[i]} launches, ceiling {allowed[i]}")
    return lines
