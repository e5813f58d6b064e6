"""Which architectures of timm and torchvision ``triton_attn.fuse`` serves: ``python -m benchmarks.counted.coverage``.

Every one is built on the meta device, without weights, and fused. Those with attention are listed: fused wholly, partly
or left, and why. ``--output`` and ``--page`` write the result file and the page of it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import warnings
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton_attn
from benchmarks.files import markdown, versions, write
from triton_attn.fuse_command import build
from triton_attn.fusion import Report


@dataclass
class Architecture:
    """How many attention modules of a network are fused, of how many, by class; and the reasons of those left."""

    modules: int = 0
    one_op: int = 0
    by_parts: int = 0
    tails: int = 0
    norms: int = 0
    fused: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    @property
    def how(self) -> str:
        """Fused wholly, partly, or left."""
        served = self.one_op + self.by_parts
        return "wholly" if served == self.modules else "partly" if served else "left"


def architecture(report: Report) -> Architecture:
    """What a report comes to."""
    by_parts = sum(entry.note.startswith("by parts") for entry in report.fused)
    return Architecture(
        modules=len(report),
        one_op=len(report.fused) - by_parts,
        by_parts=by_parts,
        tails=sum(entry.tail for entry in report),
        norms=sum(entry.norm for entry in report),
        fused=dict(Counter(entry.module for entry in report.fused)),
        left=dict(Counter(f"{entry.module}: {entry.note}" for entry in report.left)),
    )


def names(pattern: str) -> list[str]:
    """The libraries' architectures."""
    import timm
    import torchvision

    known = {"timm": timm.list_models(), "torchvision": torchvision.models.list_models()}
    every = [f"{library}/{name}" for library, names in known.items() for name in names]
    return [name for name in every if re.search(pattern, name)]


def measure(pattern: str = "") -> dict[str, Any]:
    """The result: all architectures that have attention, how many have none, and those that could not be built."""
    found: dict[str, Architecture] = {}
    failed: dict[str, str] = {}
    without = 0
    every = names(pattern)
    for i, name in enumerate(every):
        if i % 100 == 0:
            print(f"{i} of {len(every)}: {name}", file=sys.stderr, flush=True)
        try:
            model = build(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        if report := triton_attn.fuse(model):
            found[name] = architecture(report)
        else:
            without += 1
    return {
        "versions": versions("timm", "torchvision"),
        "architectures": {name: {"how": each.how, **asdict(each)} for name, each in found.items()},
        "without": without,
        "failed": failed,
    }


def totals(result: dict[str, Any]) -> list[str]:
    """The counts, as lines of Markdown."""
    found = result["architectures"].values()
    how = Counter(each["how"] for each in found)
    in_one = sum(each["how"] == "wholly" and not each["by_parts"] for each in found)
    count = len(found) + result["without"] + len(result["failed"])
    lines = [
        f"* {count} architectures, {len(found)} with gate-like attention: {how['wholly']} fused wholly, "
        f"{how['partly']} partly, {how['left']} left.",
        f"* {in_one} of those fused wholly have every gate network inside of the op; in the others some or all run as",
        "  PyTorch on their small vectors, between our squeeze and our multiplication.",
        f"* {sum(each['modules'] for each in found)} attention modules, "
        f"{sum(each['one_op'] for each in found)} in one op, {sum(each['by_parts'] for each in found)} by parts, "
        f"{sum(each['tails'] for each in found)} with shortcut and ReLU, these in "
        f"{sum(each['tails'] > 0 for each in found)} architectures.",
        f"* {sum(each['norms'] for each in found)} with the batch norm in front, and an activation between in part, in "
        f"{sum(each['norms'] > 0 for each in found)} architectures.",
    ]
    if result["failed"]:
        lines.append(f"* Not built: {', '.join(sorted(result['failed']))}.")
    return lines


def table(result: dict[str, Any], key: str, head: tuple[str, str]) -> str:
    """Modules and architectures by class, or by what was left and why, as a table of Markdown."""
    modules: Counter[str] = Counter()
    networks: defaultdict[str, list[str]] = defaultdict(list)
    for name, each in result["architectures"].items():
        for kind, number in each[key].items():
            modules[kind] += number
            networks[kind].append(name)
    rows = []
    for kind, number in modules.most_common():
        name, _, why = kind.partition(": ")
        of = networks[kind]
        such = ", ".join(of[:3]) + (" …" if len(of) > 3 else "")
        rows.append((f"`{name}`: {why}" if why else f"`{name}`", number, len(of), such))
    return markdown((head[0], "modules", "architectures", head[1]), rows)


def page(result: dict[str, Any]) -> str:
    """The result as a page of the documentation."""
    made = {name: f"{name} {version}" for name, version in result["versions"].items()}
    whole = [name for name, each in result["architectures"].items() if each["how"] == "wholly"]
    rest = [(name, each) for name, each in result["architectures"].items() if each["how"] != "wholly"]
    return "\n".join(
        [
            "# What fuse serves",
            "",
            f"Every architecture of {made['timm']} and {made['torchvision']}, with {made['torch']}, built without",
            "weights and fused: `python -m benchmarks.counted.coverage`. `benchmarks/results/coverage.json` has each.",
            "",
            *totals(result),
            "",
            "## Fused",
            "",
            table(result, "fused", ("class", "such as")),
            "",
            "## Left",
            "",
            table(result, "left", ("class and reason", "such as")),
            "",
            "## Not wholly",
            "",
            markdown(
                ("architecture", "fused", "left"),
                (
                    (
                        name,
                        f"{each['one_op'] + each['by_parts']} of {each['modules']}",
                        ", ".join(f"{number} {kind}" for kind, number in each["left"].items()),
                    )
                    for name, each in rest
                ),
            ),
            "",
            "## Wholly",
            "",
            *textwrap.wrap(", ".join(whole) + ".", 120),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression for library/name")
    parser.add_argument("--output", type=Path, help="the result file to write")
    parser.add_argument("--page", type=Path, help="the page to write")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result = measure(arguments.pattern)
    if arguments.output:
        write(arguments.output, json.dumps(result, indent=1) + "\n")
    if arguments.page:
        write(arguments.page, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
