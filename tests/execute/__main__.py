"""A longer, drawn sweep: ``python -m tests.execute --draw 300 --seed 0``.

Executes configurations drawn from the seed, and every kernel of a few with each barrier left out. One that fails is
printed as a test to paste. ``--output FILE`` writes what was done.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import triton

from benchmarks.files import write

from .configurations import Configuration, check, drawn
from .mutations import BLOCKS, Mutant, mutants


def main() -> int:
    """0, or 1 where a configuration fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.execute", description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", type=int, default=300, metavar="N", help="configurations (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow (default: 0)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.draw < 1:
        parser.error(f"--draw: expected at least 1, got {options.draw}")
    began, kernels, launches, failed = time.perf_counter(), set(), 0, []
    seeds = range(options.seed, options.seed + options.draw)
    with ProcessPoolExecutor(options.processes) as pool:
        for seed, (names, fault) in zip(seeds, pool.map(_execute, seeds), strict=True):
            launches += len(names)
            kernels |= set(names)
            if fault:
                failed.append(str(drawn(seed)))
                print(_as_test(drawn(seed), seed), fault, sep="\n", flush=True)
        made = [mutant for found in pool.map(mutants, BLOCKS) for mutant in found]
    found = {
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "seed": options.seed,
        "configurations": options.draw,
        "launches": launches,
        "kernels": sorted(kernels),
        "failed": failed,
        "barriers": {
            "left out": len(made),
            "found": sum(mutant.is_found for mutant in made),
            "not found, and no bit differs": _counted(
                [each for each in made if not each.is_found and not each.differs]
            ),
            "not found, though bits differ": _counted([each for each in made if not each.is_found and each.differs]),
        },
    }
    print(json.dumps(found, indent=2))
    print(f"{time.perf_counter() - began:.0f} s")
    if options.output:
        write(options.output, json.dumps(found, indent=2) + "\n")
    return 1 if failed else 0


def _counted(made: list[Mutant]) -> dict[str, int]:
    """Of mutants, by kernel."""
    names = sorted(mutant.kernel for mutant in made)
    return {name: names.count(name) for name in names}


def _execute(seed: int) -> tuple[list[str], str]:
    """The kernels of the configuration that a seed draws, and what is wrong with it."""
    torch.set_num_threads(1)
    try:
        executor = check(drawn(seed))
    except Exception:
        return [], traceback.format_exc(limit=-2)
    return [launch.kernel.fn.__name__ for launch, _ in executor.executed], "\n".join(map(str, executor.found))


def _as_test(configuration: Configuration, seed: int) -> str:
    return f"\n# {configuration}\ndef test_drawn_{seed}() -> None:\n    assert not check(drawn({seed})).found\n"


if __name__ == "__main__":
    sys.exit(main())
