"""What a block may move and launch: the design's promise, which ``benchmarks.traffic --check`` holds."""

from __future__ import annotations

from dataclasses import dataclass

ALLOWED = 1.02  # of the passes over the map: small tensors are within the allowance
SECTORS_ALLOWED = 1.15  # of the bytes


@dataclass(frozen=True)
class Ceiling:
    """Passes over the map, in T, without a shortcut; launches; and up to how many channels both hold.

    A shortcut adds a pass forward (its read) and one backward (its gradient's write), and a mask of one bit per
    element, which is written once and read by ``mask_reads`` of the backward's launches.
    """

    forward: float
    backward: float
    mask_reads: int
    launches: tuple[int, int] | None = None
    channels: int | None = None

    def passes(self, with_shortcut: bool, itemsize: int) -> tuple[float, float]:
        """T forward and backward."""
        if not with_shortcut:
            return self.forward, self.backward
        bits = 1 / (8 * itemsize)
        return self.forward + 1 + bits, self.backward + 1 + self.mask_reads * bits


SQUEEZE = Ceiling(3, 4, mask_reads=2, launches=(2, 3))
BOTH_POOLS = Ceiling(4, 6, mask_reads=3, launches=(4, 5))

# By what is counted: a block, or a block on a certain input.
CEILINGS = {
    "se": SQUEEZE,
    "eca": SQUEEZE,
    "coordinate": Ceiling(3, 4, mask_reads=2),
    "coordinate, maxima tied": Ceiling(3, 5, mask_reads=2),
    "cbam": BOTH_POOLS,
    "dual": BOTH_POOLS,
    "pixel": Ceiling(2, 3, mask_reads=1, channels=256),
    "gate": Ceiling(2, 3, mask_reads=1, channels=256),
    "gate, own signal": Ceiling(3, 5, mask_reads=1, channels=256),
}


def over(
    what: str,
    ceiling: Ceiling,
    with_shortcut: bool,
    itemsize: int,
    moved: tuple[float, float],
    sectors: tuple[float, float],
    launches: tuple[int, int],
) -> list[str]:
    """A line for everything of ``what`` that is over its ceiling; pairs are forward and backward."""
    lines = []
    passes, allowed = ceiling.passes(with_shortcut, itemsize), ceiling.launches
    for i, direction in enumerate(("forward", "backward")):
        if moved[i] > passes[i] * ALLOWED:
            lines.append(f"{what}: {direction} moves {moved[i]:.3f} T, ceiling {passes[i]:.3f} T")
        if sectors[i] > SECTORS_ALLOWED:
            lines.append(f"{what}: {direction} touches {sectors[i]:.3f} of its bytes, ceiling {SECTORS_ALLOWED}")
        if allowed is not None and launches[i] > allowed[i]:
            lines.append(f"{what}: {direction} starts {launches[i]} launches, ceiling {allowed[i]}")
    return lines
