"""Every kernel as compiled, executed: the numbers are right, and there is nothing that a GPU would punish."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

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


def test_every_kernel_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(triton_attn.__file__).parent / "kernels"
    written = {
        node.name
        for file in folder.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    started: set[str] = set()

    def note(kernel: Any, *_: Any, **__: Any) -> None:
        started.add(kernel.fn.__name__)

    for configuration in FIXED:
        with Executor().installed(), triton_attn.use_backend("triton"):
            monkeypatch.setattr(launch, "start", note)
            results(configuration)
            monkeypatch.undo()
    assert written == started


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
