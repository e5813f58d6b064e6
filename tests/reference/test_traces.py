"""Who writes a block down: torch.fx, torch.jit.trace, torch.export and the exporters to ONNX."""

from __future__ import annotations

import contextlib
import importlib.util
import io

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn.reference.registry import ALL as PLAIN
from triton_attn.registry import ALL

pytestmark = pytest.mark.filterwarnings("ignore")  # tracing warns of every look at a shape


def make(kinds: dict[str, type[nn.Module]], name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    block = kinds[name](32, **options).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def draw(*size: int) -> Tensor:
    return torch.randn(1, 32, *(size or (5, 4)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kinds", [PLAIN, ALL], ids=["plain", "fast"])
@pytest.mark.parametrize("name", sorted(ALL))
def test_fx(name, kinds):
    block, x, other = make(kinds, name), draw(), draw().flip(2)
    # Within a network it is one node, by itself it is traced through: with its own parameters, for maps of every size.
    network = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), block))
    assert [node.target for node in network.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert torch.equal(network(x), block(x.relu()))
    alone = torch.fx.symbolic_trace(block)
    assert set(alone.state_dict()) == set(block.state_dict())
    for t in (x, draw(7, 2)):
        torch.testing.assert_close(alone(t), block(t))
    torch.testing.assert_close(alone(x, shortcut=other), block(x, shortcut=other))
    parameters = dict(block.named_parameters())
    if parameters:
        of_trace = torch.autograd.grad(alone(x).square().sum(), list(alone.parameters()))
        own = torch.autograd.grad(block(x).square().sum(), [parameters[key] for key, _ in alone.named_parameters()])
        torch.testing.assert_close(of_trace, own, rtol=1e-4, atol=1e-4)


def test_fx_of_what_only_some_blocks_take():
    x, signal = draw(), draw(3, 3)[:, :7]
    for name in ("gate", "published.gate", "published.grid_gate"):
        block = make(ALL, name, gating_channels=7)
        torch.testing.assert_close(torch.fx.symbolic_trace(block)(x, signal), block(x, signal))
    block = make(ALL, "nonlocal")
    found = torch.fx.symbolic_trace(block)(x, return_attention=True)
    torch.testing.assert_close(found, block(x, return_attention=True))

    class Residual(triton_attn.SEBlock):  # a forward around the block's: a node is the whole of it
        def forward(self, x, shortcut=None):
            return x + super().forward(x, shortcut)

    mine = Residual(32)
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(mine))(x), mine(x))

    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = make(ALL, "se")

        def forward(self, x):
            return self.block(x=x, shortcut=x)

    tail = Tail()
    traced = torch.fx.symbolic_trace(tail)
    assert len([node for node in traced.graph.nodes if node.op == "call_module"]) == 1
    torch.testing.assert_close(traced(x), tail(x))


@pytest.mark.parametrize("name", ["cbam", "dual", "published.cbam"])
def test_traces_in_either_mode_of_gradients(name):
    block, x = make(ALL, name), draw()
    x = x.clone().requires_grad_()
    with torch.no_grad():
        without = torch.jit.trace(block, x)
    for traced in (torch.jit.trace(block, x), without):  # which trace again to compare
        for own, of_trace in zip(*(torch.autograd.grad(f(x).sum(), x) for f in (block, traced)), strict=True):
            torch.testing.assert_close(own, of_trace)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nonlocal", {}),
        ("published.nonlocal", {}),
        ("published.nonlocal", {"mode": "dot_product", "subsample": False}),
        ("published.position", {}),
    ],
)
def test_export_holds_on_both_sides_of_the_threshold(name, options):
    block = make(ALL, name, **options)
    height, width = (torch.export.Dim(side, min=4, max=256) for side in ("height", "width"))
    for first in ((8, 9), (33, 34)) if name == "nonlocal" else ((33, 34),):
        exported = torch.export.export(block, (draw(*first),), dynamic_shapes={"x": {2: height, 3: width}}).module()
        for size in ((6, 5), (32, 32), (25, 41), (40, 30)):
            torch.testing.assert_close(exported(draw(*size)), block(draw(*size)), rtol=1e-3, atol=1e-3)
            # No matrix of positions: whatever the size, one operator attends.
        targets = [str(node.target) for node in exported.graph.nodes]
        assert any("scaled_dot_product" in target for target in targets) == (options.get("mode") is None)
        assert not any("softmax" in target for target in targets)


@pytest.mark.parametrize("size", [(8, 8), (33, 34)], ids=["small", "large"])
def test_a_bare_non_local_block_to_onnx_by_a_trace(size):
    block, file = make(ALL, "nonlocal"), io.BytesIO()
    # Only what looks at the finished graph is ONNX's own.
    last = None if importlib.util.find_spec("onnx") else torch.onnx.errors.OnnxExporterError
    with pytest.raises(last, match="onnx is not installed") if last else contextlib.nullcontext():
        torch.onnx.export(block, (draw(*size),), file, dynamo=False)
    assert last or file.getvalue()
