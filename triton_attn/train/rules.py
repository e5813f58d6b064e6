"""What a value may be: the same rules for options, for the configuration of a run and for the card of a checkpoint."""

from __future__ import annotations

import argparse
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What is expected, in words, and a reader that returns the value or raises a ValueError or TypeError."""

    expected: str
    read: Callable[[Any], Any]

    def __call__(self, value: Any) -> Any:
        """The value, in the type that it should have.

        Raises:
            ValueError: it is no such value.
        """
        try:
            return self.read(value)
        except Mismatch:
            raise
        except (ValueError, TypeError, OverflowError):
            raise Mismatch(f"expected {self.expected}, got {brief(value)}") from None

    def words(self, convert: Callable[[str], Any]) -> Callable[[str], Any]:
        """A reader for argparse, of words that ``convert`` makes values of."""

        def read(word: str) -> Any:
            try:
                return self.read(convert(word))
            except (ValueError, TypeError, OverflowError):
                raise argparse.ArgumentTypeError(f"expected {self.expected}, got {brief(word)}") from None

        return read


class Mismatch(ValueError):
    """What was expected, and what came."""


def check_fields(found: Any, rules: Mapping[str, Rule], lacking: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a file, every one of them checked.

    Args:
        found: what was read from the file.
        rules: by the name of the field; fields without a rule are an error.
        lacking: those that need not be there.

    Raises:
        ValueError: which field is missing, unknown or not as expected.
    """
    if not isinstance(found, dict):
        raise Mismatch(f"expected names and values, got {brief(found)}")
    for what, names in (
        ("lacks", [name for name in rules if name not in found and name not in lacking]),
        ("has unknown", [name for name in found if name not in rules]),
    ):
        if names:
            raise Mismatch(f"it {what} {', '.join(brief(name) for name in names[:8])}")
    values = {}
    for name, value in found.items():
        try:
            values[name] = rules[name](value)
        except ValueError as error:
            raise Mismatch(f"{name}: {error}") from None
    return values


def whole(least: int, most: int = 2**62) -> Rule:
    """Integers from ``least`` to ``most``."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    limit = f"of at least {least}" if most == 2**62 else f"of at least {least} and at most {most}"
    return Rule(f"an integer {limit}", read)


def number(expected: str, holds: Callable[[float], bool] = math.isfinite) -> Rule:
    """Finite numbers for which something holds."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        if not (math.isfinite(value) and holds(value)):
            raise ValueError
        return float(value)

    return Rule(expected, read)


def one_of(*values: Any) -> Rule:
    """One of a few."""

    def read(value: Any) -> Any:
        if not any(type(value) is type(each) and value == each for each in values):
            raise ValueError
        return value

    return Rule(f"one of {', '.join(map(str, values))}" if len(values) > 1 else str(values[0]), read)


def maybe(rule: Rule) -> Rule:
    """None, or what ``rule`` takes."""
    return Rule(f"{rule.expected}, or nothing", lambda value: None if value is None else rule(value))


def sequence(rule: Rule, least: int = 0, most: int | None = None, distinct: bool = False) -> Rule:
    """A list of values, as a tuple."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= (len(value) if most is None else most):
            raise ValueError
        items = tuple(rule(item) for item in value)
        if distinct and len(set(items)) < len(items):
            raise Mismatch(f"expected a list in which nothing is twice, got {brief(value)}")
        return items

    count = f"{least} " if least == most else ""
    return Rule(f"a list of {count}values", read)


def fields(rules: Mapping[str, Rule]) -> Rule:
    """Names and values of which every one has its rule."""
    return Rule("names and values", lambda value: check_fields(value, rules))


def as_list(rule: Rule) -> Rule:
    """The same values as a list."""
    return Rule(rule.expected, lambda value: list(rule(value)))


def mapping(key: Rule, value: Rule) -> Rule:
    """Names and values."""

    def read(found: Any) -> dict[Any, Any]:
        if not isinstance(found, dict):
            raise TypeError
        return {key(name): value(each) for name, each in found.items()}

    return Rule("names and values", read)


def either(expected: str, *rules: Rule) -> Rule:
    """What one of the rules takes."""

    def read(value: Any) -> Any:
        for rule in rules:
            try:
                return rule(value)
            except ValueError:
                pass
        raise ValueError

    return Rule(expected, read)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


TEXT = Rule("a text that is not empty and has no NUL in it", _text)
TRUTH = one_of(True, False)


def brief(value: Any) -> str:
    """A value for a message, however large it is."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 60
    try:
        return shorten.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a very large {type(value).__name__}"
