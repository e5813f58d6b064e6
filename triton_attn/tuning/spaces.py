"""The configs that a launch may take beside the one of its rule.

A kernel's space stands below it, in its file, as ``SPACES[its name]``: which parameters may be changed without another
bit in the result. Blocks along a summed axis are never among them, nor is what decides how threads share a sum.
A space maps a parameter, or several that go together, to powers of two by which the rule's choice is multiplied:
``{"SPAN": (0, 1, 2)}`` is once, twice and four times as much. Numbers of stages, no powers of two, are given as such.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

Space = Mapping["str | tuple[str, ...]", tuple[int, ...]]
Config = dict[str, int]

ABSOLUTE = ("num_stages", "STAGES")
# Products of fewer than 64 rows are a single warp's on Hopper, with sums of their own; of fewer than 16 there are none.
LEAST_ROWS, LEAST_BLOCK = 64, 16
MOST_WARPS = 16


def space_of(kernel: Any) -> Space:
    """The space of a kernel; empty where there is nothing to choose."""
    return sys.modules[kernel.fn.__module__].SPACES[kernel.fn.__name__]


@cache
def known_spaces() -> dict[str, Space]:
    """The spaces of all kernels by name. Imports the kernels, and so Triton."""
    from .. import kernels

    found: dict[str, Space] = {}
    for module in pkgutil.iter_modules(kernels.__path__):
        found |= getattr(importlib.import_module(f"{kernels.__name__}.{module.name}"), "SPACES", {})
    return found


def parameters(space: Space) -> list[str]:
    """The names that a space may change."""
    return [name for names in space for name in _together(names)]


def configs(space: Space, rule: Config) -> list[Config]:
    """All configs of a space around the rule's, which comes first."""
    found = [rule]
    for choice in itertools.product(*space.values()):
        config = dict(rule)
        for names, step in zip(space, choice, strict=True):
            for name in _together(names):
                config[name] = step if name in ABSOLUTE else _scaled(rule[name], step)
        if config not in found and _is_sound(config, rule):
            found.append(config)
    return found


def _together(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _scaled(value: int, step: int) -> int:
    return value << step if step >= 0 else value >> -step


def _is_sound(config: Config, rule: Config) -> bool:
    return not any(_faults(config, rule))


def _faults(config: Config, rule: Config) -> Iterator[bool]:
    yield not 1 <= config["num_warps"] <= MOST_WARPS
    # A span smaller than a tile would have its neighbour's elements in it.
    yield config.get("SPAN", config.get("BLOCK_P", 0)) < config.get("BLOCK_P", 0)
    for name, value in config.items():
        least = LEAST_ROWS if name in ("BLOCK_M", "BLOCK_N") else LEAST_BLOCK
        yield name not in ("num_warps", *ABSOLUTE) and value != rule[name] and value < least
