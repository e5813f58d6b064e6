"""Every op in a network that is compiled, under the interpreter: one graph, in which it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import triton_attn
from benchmarks.counted.graphs import Graphs
from tests.ops.subjects import OPS, Subject
from tests.parity import run

pytestmark = pytest.mark.interpreter


def same(subject: Subject, ours: Tensor, right: Tensor) -> None:
    """To the bit; of non-local attention the projections are a library's, and compiled into other products."""
    of_library = subject.name.startswith("nonlocal")
    torch.testing.assert_close(ours, right, atol=1e-5 if of_library else 0, rtol=1e-4 if of_library else 0)


# By a signal it is compiled in test_position_gate.py, which resizes it.
@pytest.mark.parametrize("subject", [each for each in OPS if not each.signal], ids=str)
def test_compiles_as_one_graph(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same bits, at a second batch and size too, which the compiler takes for symbols.

    The first op is compiled for its first size, then again for any; the others, to save time, for any at once.
    """
    monkeypatch.undo()
    torch.manual_seed(0)
    torch.compiler.reset()
    channels = max(subject.channels, 16)
    block = subject.build(channels)(triton_attn)
    graphs = Graphs("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=graphs, dynamic=None if subject is OPS[0] else True)
    for shape in ((2, channels, 5, 6), (3, channels, 7, 7)):
        (x, *others), grad = subject.draw(*shape)
        x = x.contiguous(memory_format=torch.channels_last)
        y, grads = run(block, [x, *others], grad, subject.keywords)
        leaves = [t.detach().requires_grad_() for t in (x, *others)]
        compiled_y = compiled(leaves[0], **dict(zip(subject.keywords, leaves[1:], strict=True)))
        compiled_grads = torch.autograd.grad(compiled_y, [*leaves, *block.parameters()], grad)
        for a, b in zip([compiled_y, *compiled_grads], [y, *grads], strict=True):
            same(subject, a, b)
    with torch.no_grad():
        same(subject, compiled(x), block(x))
    assert graphs.all_served()
