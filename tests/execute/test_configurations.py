"""Every kernel as compiled, executed: the numbers are right, and there is nothing that a GPU would punish."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import triton_attn
from tests.execute.configurations import FIXED, LAYOUTS, ORDERS, Configuration, check, results
from tests.execute.hook import Executor
from tests.execute.runtime import obstacle
from triton_attn.ops import launch

pytestmark = [
    pytest.mark.execute,
    pytest.mark.skipif(obstacle() is not None, reason=f"executing kernels: {obstacle()}"),
]


@pytest.mark.parametrize("configuration", FIXED, ids=str)
def test_numbers_and_findings(configuration: Configuration) -> None:
    executor = check(configuration)
    assert executor.executed
    assert not executor.found


@pytest.fixture(scope="module")
def started() -> dict[str, dict[str, set[bool]]]:
    """The kernels that the fixed configurations start, and of each the values that its flags have."""
    found: dict[str, dict[str, set[bool]]] = {}

    def note(kernel: Any, *_: Any, **arguments: Any) -> None:
        flags = found.setdefault(kernel.fn.__name__, {})
        for parameter in kernel.params:
            value = arguments.get(parameter.name, ...)
            if parameter.is_constexpr and (value is None or isinstance(value, bool)):
                flags.setdefault(parameter.name, set()).add(bool(value))

    for configuration in FIXED:
        executor = Executor()
        with executor.installed(), triton_attn.use_backend("triton"), mock.patch.object(launch, "start", note):
            results(configuration)
    return found


def test_every_kernel_is_executed(started: dict[str, Any]) -> None:
    folder = Path(triton_attn.__file__).parent / "kernels"
    written = {
        node.name
        for file in folder.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert written == started.keys()


# Of these flags one value alone is executed: the interpreter needs UPCAST and AS_KEYS, tensors of 2³¹ elements WIDE.
ONE_VALUE = {"UPCAST", "AS_KEYS", "WIDE"}


def test_every_flag_is_executed_both_ways(started: dict[str, dict[str, set[bool]]]) -> None:
    one = {(kernel, flag) for kernel, flags in started.items() for flag, values in flags.items() if len(values) == 1}
    assert not {each for each in one if each[1] not in ONE_VALUE}


@pytest.mark.parametrize("order", ORDERS, ids=["backwards", "drawn"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["se", "cbam", "gate", "nonlocal"])
def test_no_bit_goes_by_the_order(name: str, layout: str, order: Any) -> None:
    configuration = Configuration(name, (2, 32, 5, 7), torch.bfloat16, layout, with_shortcut=True)
    found = []
    for executor in (Executor(), Executor(order=order)):
        with executor.installed(), triton_attn.use_backend("triton"):
            found.append(results(configuration))
        assert not executor.found
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
