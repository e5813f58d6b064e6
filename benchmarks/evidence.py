"""What speaks for a claim, and what is not there to speak: a claim passes by all that it names, and not by a part."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measurement import LATE, NOT_YET

PASS, SO_FAR, SHORT, OPEN = "pass", "passes so far", "falls short", "not measured"
NAMED = 3  # of what is missing


@dataclass(frozen=True)
class Claim:
    """One line of the table."""

    name: str
    goal: str
    measured: str
    verdict: str
    source: str
    kind: str = "measured"


@dataclass
class Evidence:
    """Values by what they are of, what is not measured yet, and where ours failed."""

    values: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add_ratios(self, where: str, case: Mapping[str, Any] | None, rivals: Iterable[str], of: Ratio) -> None:
        """``of`` a case's ours and every rival; one that refuses the case is no rival in it.

        Args:
            where: what the case is of.
            case: its record, or None where it was not measured.
            rivals: whom the claim names.
            of: the value, given the record and a rival that was timed.
        """
        if case is None:
            self.missing.append(where)
            return
        refused = case["not_timed"]
        if "ours" not in case["seconds"]:
            why = refused.get("ours", LATE)
            if why in NOT_YET:
                self.missing.append(where)
            else:
                self.failed.append(f"{where}: {why}")
            return
        for rival in rivals:
            if rival in case["seconds"]:
                self.values[f"{where}, {rival}"] = of(case, rival)
            elif refused.get(rival, LATE) in NOT_YET:
                self.missing.append(f"{where}, {rival}")

    def note_never_timed(self, rivals: Iterable[str]) -> None:
        """A rival that refuses everything was not beaten."""
        seen = {name.rpartition(", ")[2] for name in [*self.values, *self.missing]}
        self.missing += [f"{rival} anywhere" for rival in rivals if self.values and rival not in seen]


Ratio = Callable[[Mapping[str, Any], str], float]


def at_least(name: str, goal: str, evidence: Evidence, least: float, source: str, unit: str) -> Claim:
    """A claim that the least of some values decides."""
    return _decided(name, goal, evidence, min, source, unit, lambda worst: worst >= least)


def at_most(name: str, goal: str, evidence: Evidence, most: float, source: str, unit: str) -> Claim:
    """A claim that the greatest of some values decides."""
    return _decided(name, goal, evidence, max, source, unit, lambda worst: worst <= most)


def _decided(
    name: str,
    goal: str,
    evidence: Evidence,
    pick: Callable[..., str],
    source: str,
    unit: str,
    passes: Callable[[float], bool],
) -> Claim:
    values, parts, verdict = evidence.values, [], OPEN
    if evidence.failed:
        parts.append(f"ours failed: {listed(evidence.failed)}")
        verdict = SHORT
    if values:
        worst = pick(values, key=lambda what: values[what])
        middle, bound = statistics.median(values.values()), "at least" if pick is min else "at most"
        parts.append(f"{bound} {values[worst]:.2f} {unit} ({worst}), median {middle:.2f}, of {len(values)}")
        if verdict != SHORT:
            verdict = SHORT if not passes(values[worst]) else SO_FAR if evidence.missing else PASS
    if parts and evidence.missing:
        parts.append(f"not measured: {listed(evidence.missing)}")
    return Claim(name, goal, "; ".join(parts), verdict, source)


def listed(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more
