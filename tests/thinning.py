"""Which cases of a test that is parametrised over and over are run: any value, or any two values, at least once.

What breaks, breaks most often by one value, or by two that meet; three dozen cases of three values each repeat
themselves. ``pytest --every-case``, or ``make test-all``, runs them all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

Case = Sequence[Hashable]


def kept(cases: Sequence[Case], together: int) -> list[int]:
    """Which of the cases to keep: every ``together`` values that meet in one of them meet in one that is kept.

    Next comes the case with most that was not met yet, of equals the one in which more pairs are new, then the first:
    so it is the same for everybody, and values are mixed.
    """
    met = [set(combinations(enumerate(case), min(together, len(case)))) for case in cases]
    pairs = [set(combinations(enumerate(case), 2)) for case in cases]
    wanted: set[Hashable] = set().union(*met)
    new: set[Hashable] = set().union(*pairs)
    found = []
    while wanted:
        best = max(range(len(cases)), key=lambda i: (len(met[i] & wanted), len(pairs[i] & new)))
        found.append(best)
        wanted -= met[best]
        new -= pairs[best]
    return sorted(found)
