"""Triton's interpreter, faster still: the operators of its tensors go straight to NumPy.

A sum of two blocks passes fifteen of the language's functions, which find out what type it has, and come to the same
few types all day. Here operands of equal types are known by looking at them. Whatever else comes (mixed types;
bfloat16, which NumPy does not have; compile-time values) takes the way it always took. Results are the same to the bit.
"""

from __future__ import annotations

from typing import Any

ARITHMETIC = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide"}
COMPARISONS = {
    "gt": "greater",
    "ge": "greater_equal",
    "lt": "less",
    "le": "less_equal",
    "eq": "equal",
    "ne": "not_equal",
}
BITWISE = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}


def patch_operators() -> None:
    """Put the short ways into the language's tensor: once, in a process that interprets."""
    import numpy as np
    from triton.language import core
    from triton.runtime import interpreter

    # No index into a map that is interpreted comes near 2³¹, and looking for that was a third of all the work.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    tensor, block_type, pointer_type = core.tensor, core.block_type, core.pointer_type
    handle_type, semantic = interpreter.TensorHandle, interpreter.interpreter_semantic
    # By identity: a type's own hash is Python's work.
    floats = {id(core.float32): np.float32}
    others = {id(core.float16): np.float16, id(core.float64): np.float64}
    integers = {id(core.int32): np.int32, id(core.int64): np.int64}
    booleans = {id(core.int1): np.bool_}
    blocks: dict[Any, Any] = {}

    def block(kind: Any, shape: tuple[int, ...]) -> Any:
        """The type of a block, made once."""
        key = (id(kind), shape)
        if key not in blocks:
            if type(kind) is pointer_type:  # made anew by every launch, which frees its name here
                return block_type(kind, list(shape))
            blocks[key] = block_type(kind, list(shape))
        return blocks[key]

    def made(data: Any, held: Any, kind: Any, *operands: Any) -> Any:
        """The tensor of these data; a block where one of the operands is one."""
        handle = object.__new__(handle_type)
        handle.data, handle.dtype, handle.attr = data, held, {}
        if any(type(each.type) is block_type for each in operands):
            kind = block(kind, data.shape)
        return tensor(handle, kind)

    def short(name: str, function: Any, kinds: dict[int, Any], result: Any = None, swapped: bool = False) -> None:
        """One operator, for operands of one of the kinds; ``result`` is the type of its elements, if it is another."""
        longer = getattr(tensor, name)

        def apply(self: Any, other: Any, **_: Any) -> Any:
            kind = self.dtype
            if id(kind) in kinds:
                if type(other) is tensor:
                    if other.dtype is kind:  # Python asks the left one
                        data = function(self.handle.data, other.handle.data)
                        return made(data, kind, result or kind, self, other)
                elif type(other) is int or (type(other) is float and id(kind) not in integers):
                    value = kinds[id(kind)](other or 0)  # a constant has no −0
                    data = function(value, self.handle.data) if swapped else function(self.handle.data, value)
                    return made(data, kind, result or kind, self)
            return longer(self, other, _semantic=semantic)

        setattr(tensor, name, apply)

    for name, function in ARITHMETIC.items():
        kinds = floats | ({} if name == "truediv" else others | integers)
        short(f"__{name}__", getattr(np, function), kinds)
        short(f"__r{name}__", getattr(np, function), kinds, swapped=True)
    for name, function in COMPARISONS.items():  # a constant beside a half is a float there
        short(f"__{name}__", getattr(np, function), floats | integers, core.int1)
    for name, function in BITWISE.items():
        short(f"__{name}__", getattr(np, function), integers | booleans)

    add = tensor.__add__

    def moved(self: Any, other: Any, **_: Any) -> Any:
        """A sum, of a pointer and an offset too."""
        pointer = self.dtype
        if type(pointer) is not pointer_type or type(other) is not tensor or id(other.dtype) not in integers:
            return add(self, other)
        width = max(1, pointer.element_ty.primitive_bitwidth // 8)
        data = self.handle.data + width * other.handle.data.astype(np.uint64)
        if type(self.type) is block_type and data.shape == self.handle.data.shape:
            pointer = self.type
        elif type(self.type) is block_type or type(other.type) is block_type:
            pointer = block(pointer, data.shape)
        handle = object.__new__(handle_type)
        handle.data, handle.dtype, handle.attr = data, self.handle.dtype, {}
        return tensor(handle, pointer)

    tensor.__add__ = moved

    numbers = floats | others | integers
    pairs = [(a, b) for a in (*booleans, *integers) for b in (*integers, *floats)]
    pairs += [(a, b) for a in floats for b in others] + [(a, b) for a in others for b in floats]

    def converted(value: Any, kind: Any) -> Any:
        return made(value.handle.data.astype(numbers[id(kind)]), kind, kind, value)

    _look_first(type(semantic), frozenset(pairs), converted)


def _look_first(semantic: Any, pairs: frozenset[tuple[int, int]], converted: Any) -> None:
    """Operands of one shape need no broadcasting, values of a type no cast: found by looking, not by comparing.

    Between the pairs of types NumPy casts, as it does in the end for the language's function.
    """
    broadcast, cast = semantic.broadcast_impl_value, semantic.cast

    def broadcast_if_need_be(self: Any, left: Any, right: Any) -> Any:
        return (left, right) if left.shape is right.shape else broadcast(self, left, right)

    def cast_if_need_be(self: Any, value: Any, kind: Any, rounding: str | None = None) -> Any:
        held = value.dtype
        if held is kind:
            return value
        if rounding is None and (id(held), id(kind)) in pairs:
            return converted(value, kind)
        return cast(self, value, kind, rounding)

    semantic.broadcast_impl_value, semantic.cast = broadcast_if_need_be, cast_if_need_be
