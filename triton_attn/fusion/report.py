"""What fuse did: one line for every attention module."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One module: where it lies, its plain class, whether it is fused, and how, or why not.

    ``tail`` says whether the residual block around it is fused too, so that its shortcut and ReLU come with it, and
    ``norm`` whether a batch norm in front of it does, with what is activated between.
    """

    path: str
    module: str
    fused: bool
    note: str
    tail: bool = False
    norm: bool = False


class Report(list[Entry]):
    """A list of :class:`Entry` that prints as a table with totals."""

    @property
    def fused(self) -> Report:
        """Those that are fused."""
        return Report(each for each in self if each.fused)

    @property
    def left(self) -> Report:
        """Those that are not, each with the reason."""
        return Report(each for each in self if not each.fused)

    def __str__(self) -> str:
        if not self:
            return "no attention that is known here"
        rows = [("module", "class", "", "how, or why not")]
        rows += [(each.path, each.module, "fused" if each.fused else "left", each.note) for each in self]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows]
        return "\n".join([*lines, "", self.totals()])

    def totals(self) -> str:
        """In one line and one line per reason."""
        kinds = Counter(each.module for each in self.fused)
        of = ", ".join(f"{count} {module}" for module, count in kinds.most_common())
        lines = [f"{len(self.fused)} of {len(self)} fused" + (f": {of}" if of else "")]
        reasons = Counter((each.module, each.note) for each in self.left)
        return "\n".join([*lines, *(f"left: {n} {module}: {why}" for (module, why), n in reasons.most_common())])
