"""The maps at the heads of the blocks' files: the kernels that they name are those that are launched, in this order."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import triton_attn
from triton_attn.ops import launch
from triton_attn.registry import ALL

pytestmark = pytest.mark.interpreter
ROOT = Path(triton_attn.__file__).parent
LINE = re.compile(r"^(op|forward|backward|saved) +(.+(?:\n {10}.+)*)$", re.MULTILINE)
# No kernel of its own; and those whose files say it of another block, or whose map is that of a block within.
BUT = {"published.channel", "published.eca", "published.se", "published.danet"}


def map_of(name: str) -> dict[str, str]:
    text = inspect.getdoc(inspect.getmodule(ALL[name])) or ""
    return {key: " ".join(value.split()) for key, value in LINE.findall(text)}


@pytest.mark.parametrize("name", sorted(ALL.keys() - BUT))
def test_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said, seen, start = map_of(name), list[str](), launch.start
    assert list(said) == ["op", "forward", "backward", "saved"]
    for file in re.findall(r"ops/\w+\.py", said["op"]):
        assert (ROOT / file).is_file(), file

    def watched(kernel: Any, *arguments: Any, **more: Any) -> None:
        seen.append(kernel.fn.__name__)
        start(kernel, *arguments, **more)

    monkeypatch.setattr(launch, "start", watched)
    block = triton_attn.create_attention(name, 32)
    x, shortcut = (torch.randn(2, 32, 6, 6, requires_grad=True) for _ in range(2))
    with triton_attn.use_backend("triton"):
        y = block(x, shortcut=shortcut)
    forwards = len(seen)
    y.sum().backward()
    for way, launched in (("forward", seen[:forwards]), ("backward", seen[forwards:])):
        assert said[way].split(", ") == [each.removesuffix("_kernel") for each in launched]
