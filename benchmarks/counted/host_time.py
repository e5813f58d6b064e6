"""What a block's call costs its host, beside the plain block's operators: ``python -m benchmarks.counted.host_time``.

On a small map a GPU waits for its host, so this is what a call costs at small batches. On a GPU the calls are only
asked for, and waited for behind the clock; without one, Triton's real launcher runs over a driver that does nothing
(:mod:`.stub_driver`), with tensors on the CPU. The map is 1×1, where PyTorch's operators compute next to nothing on a
CPU too: so what is left of them is their host time.

Ours and plain take turns, round by round, and every round gives a ratio: load from elsewhere is in both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.files import RESULTS, quartiles, slug, today, versions, write

GOAL = 0.6  # of what the plain block's operators take
CHANNELS = 256
CALLS, ROUNDS, QUICK = 8, 120, 5
DIRECTIONS = ("inference", "training")
Call = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 where ``--check`` was asked for and a median is over the goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted.host_time", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/DEVICE/host_time.json")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="in whose place of the device")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds: that it runs, and no more")
    parser.add_argument("--check", action="store_true", help=f"fail where a median is over {GOAL}")
    parser.add_argument("--only", metavar="A,B", help="some blocks")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="CUDA initialization")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        device, name = torch.device("cuda"), torch.cuda.get_device_name()
    else:
        from benchmarks.counted import stub_driver

        stub_driver.install()
        device, name = torch.device("cpu"), "a driver that does nothing"
    cases = measure(device, QUICK if arguments.quick else ROUNDS, arguments.only and arguments.only.split(","))
    print(table(cases))
    content = {"device": name, "goal": GOAL, "date": today(), "versions": versions(), "cases": cases}
    path = arguments.output or arguments.results / (slug() if on_gpu else "cpu") / "host_time.json"
    write(path, json.dumps(content, indent=1) + "\n")
    print(f"\n{name}; written to {path}")
    over = [key for key, case in cases.items() if case["ratio"]["median"] > GOAL]
    if over:
        print(f"over {GOAL}: {', '.join(over)}", file=sys.stderr)
    return int(bool(over and arguments.check))


def measure(device: torch.device, rounds: int, only: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Microseconds of ours and plain, and their ratio, by block, direction and tail."""
    from triton_attn.reference.registry import BLOCKS as PLAIN_BLOCKS
    from triton_attn.registry import BLOCKS

    found = {}
    for name in only or sorted(BLOCKS):
        for tail in (False, True):
            ours = calls(BLOCKS[name](CHANNELS), device, tail)
            plain = calls(PLAIN_BLOCKS[name](CHANNELS), device, tail)
            for direction in DIRECTIONS:
                pair = ours[direction], plain[direction]
                times: tuple[list[float], list[float]] = [], []
                for each in pair:
                    sample(each, device, 3)  # compiles, makes plans
                for _ in range(rounds):
                    for each, own in zip(pair, times, strict=True):
                        own.append(sample(each, device, CALLS))
                ratios = [a / b for a, b in zip(*times, strict=True)]
                key = f"{name}, {direction}{', with shortcut' if tail else ''}"
                found[key] = {
                    "block": name,
                    "direction": direction,
                    "tail": tail,
                    "ours_us": quartiles(times[0]),
                    "plain_us": quartiles(times[1]),
                    "ratio": quartiles(ratios),
                }
    return found


def calls(block: torch.nn.Module, device: torch.device, tail: bool) -> dict[str, Call]:
    """What is timed of a block, in bfloat16: a forward without gradients, and a forward with all gradients."""
    torch.manual_seed(0)
    block = block.to(device, torch.bfloat16)
    shape = (1, CHANNELS, 1, 1)
    x, shortcut, grad = (
        torch.randn(shape, device=device).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(3)
    )
    inputs = {"x": x.requires_grad_()} | ({"shortcut": shortcut.requires_grad_()} if tail else {})
    wanted = [*inputs.values(), *block.parameters()]

    def inference() -> Any:
        with torch.no_grad():
            return block(**inputs)

    return {"inference": inference, "training": lambda: torch.autograd.grad(block(**inputs), wanted, grad)}


def sample(call: Call, device: torch.device, times: int) -> float:
    """Microseconds of one of so many calls: until it was asked for, not until it was done."""
    # On a CPU the time of this thread alone, whatever else runs; on a GPU the backward has a thread of its own.
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    synchronize(device)
    start = clock()
    for _ in range(times):
        call()
    taken = clock() - start
    synchronize(device)
    return taken / times * 1e6


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(cases: dict[str, dict[str, Any]]) -> str:
    """What was found, a line a case."""
    lines = [f"{'':36}{'ours, us':>10}{'plain, us':>11}{'ours / plain':>14}"]
    for key, case in cases.items():
        ratio = case["ratio"]
        lines.append(
            f"{key:36}{case['ours_us']['median']:10.1f}{case['plain_us']['median']:11.1f}{ratio['median']:10.2f}"
            f"  ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
        )
    largest = max(case["ratio"]["median"] for case in cases.values())
    middle = statistics.median(case["ratio"]["median"] for case in cases.values())
    return "\n".join([*lines, f"median {middle:.2f}, largest {largest:.2f}, goal {GOAL}"])


if __name__ == "__main__":
    sys.exit(main())
