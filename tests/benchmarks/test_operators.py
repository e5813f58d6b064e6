"""The interpreter's short ways give what the language's own functions give: the same bits, types and shapes."""

from __future__ import annotations

import operator
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from benchmarks.counted.interpreter import KNOWN, patch_once_a_launch

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not version("triton").startswith(KNOWN), reason="other releases are left as they are"),
]

OPERATORS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "greater_than": operator.gt,
    "greater_equal": operator.ge,
    "less_than": operator.lt,
    "less_equal": operator.le,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "and_": operator.and_,
    "or_": operator.or_,
    "xor_": operator.xor,
}
CHECKED = ("add", "sub", "mul")  # which take another argument, for overflow
OF_WHOLES = ("and_", "or_", "xor_")
NUMPY = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "int32": np.int32, "int64": np.int64}
WHOLES = [0, 3, -2]
SHAPES = [((4, 8), (4, 8)), ((4, 1), (1, 8)), ((8,), ()), ((), (8,)), ((), ()), ((8,), (4, 8)), ((1,), ())]


def tensor(kind: str, shape: tuple[int, ...], seed: int) -> Any:
    """Of drawn small values, some of them equal."""
    from triton.language import core
    from triton.runtime import interpreter

    dtype = core.int1 if kind == "int1" else next(each for each in vars(core).values() if named(each, kind))
    values = np.random.default_rng(seed).integers(-3, 4, shape or (1,))
    data = values > 0 if kind == "int1" else values.astype(NUMPY[kind])
    return core.tensor(interpreter.TensorHandle(data, dtype), core.block_type(dtype, list(shape)) if shape else dtype)


def named(value: Any, kind: str) -> bool:
    from triton.language import core

    return type(value) is core.dtype and value.name == kind


def same(found: Any, expected: Any) -> None:
    assert found.type == expected.type
    assert found.dtype == expected.dtype
    assert [int(size) for size in found.shape] == [int(size) for size in expected.shape]
    assert found.handle.dtype == expected.handle.dtype
    assert found.handle.data.dtype == expected.handle.data.dtype
    assert found.handle.data.shape == expected.handle.data.shape
    assert np.array_equal(found.handle.data, expected.handle.data, equal_nan=True)
    assert np.array_equal(np.signbit(found.handle.data), np.signbit(expected.handle.data))


def longer(name: str, left: Any, right: Any) -> Any:
    """By the language's function."""
    from triton.runtime.interpreter import interpreter_semantic as semantic

    return getattr(semantic, name)(left, right, *((True,) if name in CHECKED else ()))


def shorter(name: str, left: Any, right: Any) -> Any:
    """By the operator, as in a kernel."""
    from triton.language import core

    assert not hasattr(core.tensor.__add__, core.TRITON_BUILTIN)  # it is in place
    return OPERATORS[name](left, right)


@pytest.mark.parametrize("name", OPERATORS)
@np.errstate(all="ignore")
def test_two_tensors(name: str) -> None:
    kinds = ("int1", "int32", "int64") if name in OF_WHOLES else NUMPY
    for kind in kinds:
        for seed, (left, right) in enumerate(SHAPES):
            operands = tensor(kind, left, seed), tensor(kind, right, 100 + seed)
            same(shorter(name, *operands), longer(name, *operands))


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in OF_WHOLES])
@np.errstate(all="ignore")
def test_a_tensor_and_a_constant(name: str) -> None:
    from triton.runtime.interpreter import interpreter_semantic as semantic

    arithmetic = name in ("add", "sub", "mul", "truediv")
    for kind, values in {"int32": WHOLES, "int64": WHOLES, "fp32": [*WHOLES, 0.1, -0.0, 0.5, float("inf")]}.items():
        for value in values:
            for shape in [(4, 8), (1,), ()]:
                each = tensor(kind, shape, 0)
                expected = longer(name, each, value if arithmetic else semantic.to_tensor(value))
                same(shorter(name, each, value), expected)
                if arithmetic:
                    same(shorter(name, value, each), longer(name, value, each))


def test_pointers() -> None:
    from triton.language import core
    from triton.runtime import interpreter

    kind = core.pointer_type(core.float16)
    pointer = core.tensor(interpreter.TensorHandle(np.array([1 << 40], dtype=np.uint64), kind), kind)
    for offsets in (tensor("int32", (4, 8), 0), tensor("int64", (), 1), tensor("int32", (8,), 2)):
        found, expected = pointer + offsets, longer("add", pointer, offsets)
        same(found, expected)
        same(found + offsets, longer("add", expected, offsets))
    same(pointer + 3, longer("add", pointer, 3))


def test_mixed_types_take_the_longer_way() -> None:
    for name in ("add", "mul", "less_than"):
        for left, right in [("fp32", "fp16"), ("int32", "fp32"), ("int32", "int64")]:
            operands = tensor(left, (4, 8), 0), tensor(right, (4, 1), 1)
            same(shorter(name, *operands), longer(name, *operands))


@np.errstate(all="ignore")
def test_casts() -> None:
    """By what the language's own cast asks the builder for."""
    from triton.language import core
    from triton.runtime.interpreter import interpreter_builder as builder
    from triton.runtime.interpreter import interpreter_semantic as semantic

    kinds = [next(each for each in vars(core).values() if named(each, kind)) for kind in ("int1", "bf16", *NUMPY)]
    for target in kinds[2:]:
        for kind in ("int1", *NUMPY):
            for shape in [(4, 8), (1,), ()]:
                value = tensor(kind, shape, 3)
                if value.dtype is target:
                    assert semantic.cast(value, target) is value
                    continue
                wanted = core.block_type(target, list(shape)) if shape else target
                same(semantic.cast(value, target), core.tensor(builder.cast_impl(value.handle, wanted), wanted))
    wide = core.tensor(
        type(value.handle)(np.array([1.0 + 2**-11, 1e6, np.nan, -0.0], np.float32), core.float32),
        core.block_type(core.float32, [4]),
    )
    half = semantic.cast(wide, core.float16)
    assert np.array_equal(half.handle.data, wide.handle.data.astype(np.float16), equal_nan=True)
    back = semantic.cast(semantic.cast(wide, core.bfloat16), core.float32)
    assert back.handle.data.tolist()[:2] == [1.0, 999424.0]


def test_another_release_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.4 puts its functions into the language in another way."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang, interpreter.GridExecutor.__call__
    monkeypatch.delattr(interpreter, "_LangPatchScope")
    patch_once_a_launch.__wrapped__()
    assert (interpreter._patch_lang, interpreter.GridExecutor.__call__) == before
