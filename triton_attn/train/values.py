"""Readers of option values; what they refuse, argparse reports with the option's name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


def parse_attention(text: str) -> str | dict[str, str] | None:
    """``none``, a name, or ``site=name,site=name``."""
    if text.lower() == "none":
        return None
    if "=" not in text:
        return text
    pairs = [part.split("=") for part in text.split(",") if part]
    if any(len(pair) != 2 or not all(pair) for pair in pairs) or len({pair[0] for pair in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"expected a name, or site=name,site=name with every site once, got {text!r}")
    return {pair[0]: pair[1] for pair in pairs}


class KeyValues(argparse.Action):
    """``key=value`` words to a dict; values are read as YAML, so 8 is a number and true is a truth value."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        import yaml

        pairs = [word.partition("=") for word in values]
        for word, (key, equals, value) in zip(values, pairs, strict=True):
            if not (key and equals and value):
                raise argparse.ArgumentError(self, f"expected KEY=VALUE, got {word!r}")
        setattr(namespace, self.dest, {key: yaml.safe_load(value) for key, _, value in pairs})


def at_least(least: int) -> Callable[[str], int]:
    """A reader of integers from ``least`` up."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return value

    return read


def between(low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers between two others, both excluded."""

    def read(text: str) -> float:
        value = _number(text)
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"expected a number between {low:g} and {high:g}, got {text!r}")
        return value

    return read


def positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def not_negative(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
