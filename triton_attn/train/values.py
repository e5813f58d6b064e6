"""Readers of option values; what they refuse, argparse reports with the option's name."""

from __future__ import annotations

import argparse
from typing import Any

from .errors import as_user_error
from .rules import TEXT, brief, maybe

PATHS = {"output": "--output", "data": "--data", "weights": "--weights", "checkpoint": "CHECKPOINT", "images": "IMAGE"}


def check_paths(arguments: argparse.Namespace) -> None:
    """Raise unless every path that is given can be one.

    Raises:
        UserError: it is empty, which would stand for the folder one happens to be in, or has a NUL in it.
    """
    for name, called in PATHS.items():
        given = getattr(arguments, name, None)
        with as_user_error(ValueError, prefix=f"{called}: "):
            for word in given if isinstance(given, list) else [given]:
                maybe(TEXT)(word)


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
        try:
            setattr(namespace, self.dest, {key: yaml.safe_load(value) for key, _, value in pairs})
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise argparse.ArgumentError(self, f"expected KEY=VALUE, got {brief(values)}") from error
