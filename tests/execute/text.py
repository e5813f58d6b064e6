"""Reading LLVM IR as text."""

from __future__ import annotations

import re

BYTES = {"i1": 1, "i8": 1, "i16": 2, "half": 2, "bfloat": 2, "i32": 4, "float": 4, "i64": 8, "ptr": 8, "double": 8}


def arguments_of(text: str) -> list[str]:
    """What stands between the commas that are in no brackets."""
    found, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            found.append(text[start:i].strip())
            start = i + 1
    return [*found, text[start:].strip()] if text[start:].strip() else found


def type_of(argument: str) -> str:
    """The type that an argument begins with."""
    match = re.match(r"<[^>]*>|\{[^}]*\}|\w+", argument)
    assert match is not None, argument
    return match[0]


def size_of(type_: str) -> int:
    """In bytes."""
    vector = re.match(r"<(\d+) x (\w+)>", type_)
    if vector is None:
        return BYTES[type_]
    return int(vector[1]) // 8 if vector[2] == "i1" else int(vector[1]) * BYTES[vector[2]]
