"""Tuning on a GPU: no config changes a bit there either, and a tuned network gives the results it gave before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import triton_attn
from triton_attn.ops import launch
from triton_attn.ops.launch import Launch
from triton_attn.tuning import selection, spaces, tables
from triton_attn.tuning.search import of_the_config, same_bits

pytestmark = pytest.mark.gpu

# Each of these starts kernels that the others do not.
CALLS = [
    ("se", (8, 256, 56, 56)),
    ("se", (8, 2048, 7, 7)),
    ("coordinate", (8, 256, 56, 56)),
    ("eca", (8, 512, 28, 28)),
    ("cbam", (8, 256, 56, 56)),
    ("pixel", (8, 256, 56, 56)),
    ("gate", (8, 256, 56, 56)),
    ("gate", (8, 1024, 14, 14)),
    ("nonlocal", (2, 256, 56, 56)),
    ("nonlocal", (8, 1024, 14, 14)),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "shape"), CALLS, ids=[f"{name}-{shape[1]}" for name, shape in CALLS])
def test_no_config_changes_a_bit(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    differ: list[str] = []

    def compare(given: Launch) -> None:
        for config in spaces.configs(spaces.space_of(given.kernel), given.rule)[1:]:
            try:
                if not same_bits(given, config):
                    differ.append(f"{given.kernel.fn.__name__}: {config} against {given.rule}")
            except Exception as error:
                if not of_the_config(error):  # which a search passes over
                    raise

    torch.manual_seed(0)
    x, shortcut = (
        torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        for _ in range(2)
    )
    block = triton_attn.create_attention(name, shape[1], device="cuda", dtype=dtype)
    with launch.watch(compare):
        y = block(x, shortcut=shortcut)
        y.backward(torch.randn_like(y))
    assert not differ


def test_a_tuned_network_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path))
    selection.forget()
    torch.manual_seed(0)
    model = triton_attn.resnet18({"layer2": "se", "layer3": "nonlocal"}).cuda().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    seen: list[torch.Tensor] = []
    block = model.sites()["layer2"]
    # Of the first call alone: tuning calls the block as well, in ways of its own.
    noting = block.register_forward_hook(lambda _, given, y: seen.extend([given[0].clone(), y.clone()]))
    model.eval()
    with torch.no_grad():
        model(x)
        noting.remove()
        tuned = triton_attn.tune(model, x)
        assert tuned.found
        assert tables.read(tuned.path).entries.keys() == tuned.found.keys()
        assert all(found.seconds <= found.rule_seconds for found in tuned.found.values())
        again = block(seen[0])
    assert torch.equal(again, seen[1])
    selection.forget()


def test_a_watcher_sees_the_launches_of_a_backward() -> None:
    """PyTorch runs it in a thread of its own, but not while somebody watches."""
    seen: list[str] = []
    x = torch.randn(2, 64, 8, 8, device="cuda", requires_grad=True)
    y = triton_attn.SEBlock(64, device="cuda")(x)
    with launch.watch(lambda given: seen.append(given.kernel.fn.__name__)):
        y.sum().backward()
    assert "apply_gate_bwd_kernel" in seen
