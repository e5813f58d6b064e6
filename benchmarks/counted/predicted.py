"""How long every block takes on an H200, predicted from counts: ``python -m benchmarks.counted.predicted --write``.

A launch takes as long as the slowest of what it has to do: bytes from memory, bytes from the L2 cache, products on
tensor cores, other operations, and waiting. A program waits for every round of loads and for every sum over its warps;
programs that do not fit beside one another wait for those before them. While the chip fills and empties, a part of what
a program waits is hidden by nothing:

    t = START + RAMP · waits + max(DRAM bytes / rate, L2 bytes / rate, products / rate, operations / rate,
                                   (waves - 1) · waits)

What a launch before has left in the L2 cache is not read from memory again. Operators of PyTorch take their launches,
their bytes and their products. Counts are :mod:`.work`'s; registers and shared memory are those of the machine code.

FIXED is given by the chip or by what a copy was measured to take. FITTED was found by ``--fit``: the parameters with
the least error over what an H200 was measured to take at layer1 and layer3, kernels, whole blocks, and the copies that
were timed beside them; layer2, layer4 and the stem tell how far to believe it. What a copy moves, the L2 cache hands on
as well: its rate is no lower. Those were the kernels of THEN: their counts, made by this module in a checkout of that
commit, stay in the result file.

What it does not know: how a tile's elements lie in threads (bank conflicts, uncoalesced words, sums that stay within a
warp), and which loads the compiler moves before others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import SITES
from benchmarks.counted.occupancy import resident_warps
from benchmarks.counted.work import Step, counted, steps
from benchmarks.files import RESULTS, load, today, versions, write

FILE, MEASURED, THEN = "predicted.json", "nvidia-h200/blocks.json", "87a88d0"
FIT_ON = ("layer1", "layer3")
MULTIPROCESSORS = 132
FIXED = {
    # Bytes a second: what one more byte of a copy takes, measured; the data sheet has 4.8e12.
    "dram": 4.3e12,
    # Bytes that stay in the L2 cache of 50 MB, whose halves keep copies of each other's lines.
    "cache": 30e6,
}
FITTED = {
    "start": 5.38e-6,  # seconds for every launch, within a block
    "event": 0.918e-6,  # seconds more where a launch is timed by itself
    "ramp": 0.667,  # of what a program waits, that which nothing hides
    "l2": 4.3e12,  # bytes a second
    "round": 0.682e-6,  # seconds that a round of loads takes
    "meeting": 0.0645e-6,  # seconds that a sum or a maximum takes, for each of the program's warps
    "operations": 7.41e12,  # a second, on the whole chip
    "products": 3.3e14,  # multiply-adds a second, ours on tensor cores
    "library": 2.18e14,  # the library's
}
PARAMETERS = {**FIXED, **FITTED}
Parameters = Mapping[str, float]
COLUMNS: tuple[str, ...] = (
    "name",
    "programs",
    "warps",
    "registers",
    "shared",
    "products",
    "operations",
    "summed",
    "rounds",
    "meetings",
)
COLUMNS += ("launches", "touched")


def waves(step: Step) -> float:
    """How many times the chip must be filled with a launch's programs."""
    if not step.programs:
        return 1.0  # the library's
    fitting = resident_warps("sm_90", step.warps, step.registers, step.shared) // step.warps
    found = step.programs / (MULTIPROCESSORS * max(fitting, 1))
    return math.ceil(found) if found <= 2 else found  # one begins where another ends, and no time is lost on average


@dataclass(frozen=True)
class Load:
    """What a step has to do, in units that every parameter is a rate or a time of."""

    step: Step
    memory: float  # bytes that are not in the cache
    cache: float  # bytes that all programs ask for
    products: float  # on a chip that has a program on every multiprocessor
    operations: float

    @classmethod
    def of(cls, step: Step, missed: float) -> Load:
        """The load of a step that misses so many bytes."""
        idle = max(1.0, MULTIPROCESSORS / max(step.programs, 1))
        asked = sum(touched[2] for touched in step.touched)
        products = step.products * (idle if step.programs else 1.0)
        return cls(step, missed, asked, products, (step.operations + step.summed) * idle)

    def waits(self, p: Parameters) -> float:
        """Seconds that a program waits for loads, one behind the other, and for its warps to meet."""
        return self.step.rounds * p["round"] + self.step.meetings * self.step.warps * p["meeting"]

    def parts(self, p: Parameters) -> dict[str, float]:
        """Seconds that each of it takes, at the same time as the others."""
        if not self.step.programs:  # the library's, or a copy
            return {"memory": self.memory / p["dram"], "products": self.products / p["library"]}
        return {
            "memory": self.memory / p["dram"],
            "L2": self.cache / p["l2"],
            "products": self.products / p["products"],
            "operations": self.operations / p["operations"],
            "waits": (waves(self.step) - 1) * self.waits(p),
        }

    def seconds(self, p: Parameters) -> float:
        """Seconds in a block."""
        return self.step.launches * p["start"] + p["ramp"] * self.waits(p) + max(self.parts(p).values())

    def longest(self, p: Parameters) -> str:
        """What takes it so long."""
        parts = self.parts(p)
        parts["waits"] = parts.get("waits", 0.0) + p["ramp"] * self.waits(p)
        return max(parts, key=lambda part: parts[part])


def alone(step: Step) -> Load:
    """The load of a launch with nothing of it in the cache."""
    return Load.of(step, sum(min(size, asked) for _, size, asked, _ in step.touched))


def behind_one_another(found: Iterable[Step]) -> list[Load]:
    """The loads of a block's steps: what one has left in the cache another finds there."""
    loads, clock, last = [], 0.0, dict[int, float]()
    for step in found:
        missed = 0.0
        for number, size, asked, written in step.touched:
            size, between = min(size, asked), clock - last.get(number, -math.inf)
            left = min(max((FIXED["cache"] - between) / max(size, 1), 0.0), 1.0)
            missed += size if written else size * (1 - left)
        for number, size, asked, _ in step.touched:
            clock += min(size, asked)
            last[number] = clock
        loads.append(Load.of(step, missed))
    return loads


def total(loads: Iterable[Load], p: Parameters) -> float:
    """Seconds of a block, forward and backward."""
    return sum(load.seconds(p) for load in loads)


def error(predicted: float, found: float) -> float:
    """How far off, as a factor's logarithm: twice as long and half as long are alike."""
    return math.log(predicted / found)


def kernels(content: Mapping[str, Any], then: Mapping[str, list[Step]]) -> list[tuple[str, str, Step, float]]:
    """Case, site, launch and measured seconds of every kernel over a map that was timed by itself."""
    found = []
    for case in content["cases"].values():
        name, half = f"{case['block']}, {case['site']}", math.prod(case["shape"])
        own = [step for step in then[name] if step.programs and map_bytes(step, half)]
        if [step.name for step in own] != [launch["kernel"] for launch in case["launches"]]:
            raise ValueError(f"{name}: the launches that were counted are not those that were measured")
        for step, launch in zip(own, case["launches"], strict=True):
            found.append((name, case["site"], step, map_bytes(step, half) / launch["bytes_per_second"]))
    return found


def copies(content: Mapping[str, Any]) -> list[tuple[str, Load, float]]:
    """Site, load and measured seconds of the copy of the map that was timed beside every case."""
    found = []
    for case in content["cases"].values():
        size = math.prod(case["shape"]) * 2
        step = Step("copy", launches=1, touched=[(0, size, size, False), (1, size, size, True)])
        found.append((case["site"], alone(step), case["seconds"]["copy"]["median"]))
    return found


def map_bytes(step: Step, half: int) -> int:
    """Bytes of the maps that a launch is given, of at least half the block's map."""
    return sum({(number, size): size for number, size, *_ in step.touched if size >= half}.values())


def fit(content: Mapping[str, Any], then: Mapping[str, list[Step]], begin: Parameters) -> dict[str, float]:
    """The parameters with the least squared error on FIT_ON, one after another by smaller and smaller factors."""
    single = [(alone(step), took) for _, site, step, took in kernels(content, then) if site in FIT_ON]
    single += [(load, took) for site, load, took in copies(content) if site in FIT_ON]
    cases = [(name, case) for name, case in measured(content).items() if case["site"] in FIT_ON]
    whole = [(behind_one_another(then[name]), case["seconds"]["ours"]["median"]) for name, case in cases]

    def loss(p: Parameters) -> float:
        if p["l2"] < p["dram"]:
            return math.inf
        ones = sum(error(load.seconds(p) + p["event"], took) ** 2 for load, took in single)
        return ones + sum(error(total(loads, p), took) ** 2 for loads, took in whole)

    best = {**FIXED, **begin}
    least, factor = loss(best), 1.5
    while factor > 1.01:
        before = least
        for name in begin:
            for tried in (best[name] * factor, best[name] / factor):
                if (found := loss({**best, name: tried})) < least:
                    best[name], least = tried, found
        if least > before * 0.999:
            factor = factor**0.5
    return {name: best[name] for name in begin}


def measured(content: Mapping[str, Any]) -> dict[str, Any]:
    """The cases of blocks.json by block and site."""
    return {f"{case['block']}, {case['site']}": case for case in content["cases"].values()}


class Predictions:
    """The result file: the steps of every block and site, now and THEN."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.now, self.then = (
            {name: [_step(row) for row in rows] for name, rows in content.get(key, {}).items()}
            for key in ("now", "then")
        )

    def seconds(self, name: str) -> float:
        """What a block is predicted to take now."""
        return total(behind_one_another(self.now[name]), PARAMETERS)

    def seconds_then(self, name: str) -> float:
        """What the model says of the kernels that were measured."""
        return total(behind_one_another(self.then[name]), PARAMETERS)

    def longest(self, name: str, most: int = 2) -> list[tuple[str, float, str]]:
        """The steps that take longest: name, seconds, and what takes so long."""
        found = []
        for each in behind_one_another(self.now[name]):
            found.append((each.step.name, each.seconds(PARAMETERS), each.longest(PARAMETERS)))
        return sorted(found, key=lambda each: -each[1])[:most]


def _row(step: Step) -> list[Any]:
    """A step in the result file; it has no kernel and no arguments."""
    return [getattr(step, name) for name in COLUMNS]


def _step(row: Sequence[Any]) -> Step:
    return Step(**{**dict(zip(COLUMNS, row, strict=True)), "touched": [tuple(each) for each in row[-1]]})


def count(block: str, site: str) -> list[Step]:
    """The steps of a block at a site, with registers and shared memory; work and code each in a process of its own."""
    from benchmarks.counted.machine_code import specialised
    from benchmarks.counted.ptx import compiled_quickly

    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        work = pool.submit(counted, block, SITES[site])
    found = []
    for step in steps(block, SITES[site]):
        resources: dict[str, Any] = {}
        if step.kernel is not None:
            arguments = {key: value for key, value in step.arguments.items() if key != "grid"}
            report = compiled_quickly(specialised(step.kernel, arguments), "sm_90")
            resources = {"registers": report.registers, "shared": report.shared}
        found.append((step.name, resources))
    both = list(zip(work.result(), found, strict=True))
    pool.shutdown()
    if any(step.name != name for step, (name, _) in both):
        raise ValueError(f"{block}, {site}: the interpreter starts other launches than the compiler")
    return [replace(step, **resources) for step, (_, resources) in both]


def table(found: Predictions, content: Mapping[str, Any]) -> Iterator[list[str]]:
    """For every case that was measured: then, as the model has it, now, torch.compile, and what takes longest."""
    for name, case in sorted(measured(content).items()):
        took = {who: each["median"] for who, each in case["seconds"].items()}
        then, now = found.seconds_then(name), found.seconds(name)
        ratio = took["compile"] / now
        longest = ", ".join(f"{step} {seconds * 1e6:.0f} ({why})" for step, seconds, why in found.longest(name))
        yield [
            name,
            *(f"{each * 1e6:.0f}" for each in (took["ours"], then)),
            f"{then / took['ours'] - 1:+.0%}",
            f"{now * 1e6:.0f}",
            f"{took['compile'] * 1e6:.0f}",
            f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**",
            longest,
        ]


HEAD = ["block", "then, measured, µs", "then, by the model", "error", "now, predicted, µs", "torch.compile, measured"]
HEAD += ["compile over ours", "what takes longest now, µs"]


def accuracy(found: Predictions, content: Mapping[str, Any]) -> str:
    """How well the model explains what was measured, in a sentence."""
    every = kernels(content, found.then)
    single = [(site, alone(step).seconds(PARAMETERS) + FITTED["event"], took) for _, site, step, took in every]
    whole = [(c["site"], found.seconds_then(n), c["seconds"]["ours"]["median"]) for n, c in measured(content).items()]
    copied = [(site, load.seconds(PARAMETERS) + FITTED["event"], took) for site, load, took in copies(content)]
    words = []
    for label, cases in (("kernels", single), ("blocks", whole), ("copies", copied)):
        for where, fitted in (("fitted on", True), ("held out", False)):
            off = [abs(error(p, took)) for site, p, took in cases if (site in FIT_ON) == fitted]
            near = sum(each <= math.log(1.3) for each in off)
            words.append(
                f"{near} of {len(off)} {label} {where} (median error {math.expm1(statistics.median(off)):.0%})"
            )
    return f"Within a factor of 1.3: {', '.join(words)}."


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; count anew, or fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted.predicted", description=__doc__)
    parser.add_argument("--write", action="store_true", help="count the kernels as they are now: ten minutes")
    parser.add_argument("--only", metavar="A,B", help="with --write: these blocks, the others as they are in the file")
    parser.add_argument("--fit", action="store_true", help="print the parameters with the least error")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    arguments = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)  # Triton is imported later than this
    path, content = arguments.results / FILE, load(arguments.results / MEASURED)
    file = load(path)
    if arguments.write:
        for name in file["then"]:
            block, site = name.split(", ")
            if not arguments.only or block in arguments.only.split(","):
                print(f"counting {name}", file=sys.stderr)
                file["now"][name] = [_row(step) for step in count(block, site)]
        write(path, as_json({**file, "versions": versions(), "date": today()}))
    found = Predictions(file)
    if arguments.fit:
        print(fit(content, found.then, FITTED))
    print("\n".join("  ".join(row) for row in (HEAD, *table(found, content))))
    print(accuracy(found, content))
    return 0


def as_json(content: Mapping[str, Any]) -> str:
    """The file, a step a line."""
    head = {key: value for key, value in content.items() if key not in ("now", "then")}
    lines = [json.dumps(head, indent=1)[:-2]]
    for key in ("now", "then"):
        cases = (
            f"  {json.dumps(name)}: [\n" + ",\n".join(f"   {json.dumps(row)}" for row in rows) + "\n  ]"
            for name, rows in content[key].items()
        )
        lines.append(f' "{key}": {{\n' + ",\n".join(cases) + "\n }")
    return ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
