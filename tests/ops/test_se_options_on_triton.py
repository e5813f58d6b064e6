"""SE's options as one op under the interpreter, by the block: every value at least once, and what hypothesis draws."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import triton_attn
from tests.parity import DTYPES, LAYOUTS, check_block
from triton_attn.reference.activations import CHOICES, HIDDEN
from triton_attn.reference.channel_gate import POOLS

pytestmark = pytest.mark.interpreter


def every_value() -> Any:
    """An example for each hidden activation; gates, pools, layers, biases, layouts, dtypes and the tail go round."""
    flags, pools, gates, layouts = cycle([True, False]), cycle(POOLS), cycle(CHOICES), cycle(LAYOUTS[:2])
    dtypes = cycle(DTYPES)

    def decorate(test: Any) -> Any:
        for i, hidden in enumerate([*HIDDEN, "relu"]):
            test = example(
                hidden=hidden,
                gate=next(gates),
                pool=next(pools),
                one_layer=hidden == "relu",
                bias=i % 3 != 0,
                identity=i % 4 == 1,
                layout=next(layouts),
                dtype=next(dtypes),
                with_shortcut=i % 4 < 2,
                shape=(2, 12, 5, 3) if next(flags) else (3, 21, 4, 4),
            )(test)
        return test

    return decorate


@settings(max_examples=6)
@given(
    hidden=st.sampled_from(sorted(HIDDEN)),
    gate=st.sampled_from(CHOICES),
    pool=st.sampled_from(POOLS),
    one_layer=st.booleans(),
    bias=st.booleans(),
    identity=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    with_shortcut=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.integers(3, 24), st.integers(1, 9), st.integers(1, 9)),
)
@every_value()
def test_parity(
    hidden: str,
    gate: str,
    pool: str,
    one_layer: bool,
    bias: bool,
    identity: bool,
    layout: str,
    dtype: torch.dtype,
    with_shortcut: bool,
    shape: tuple[int, int, int, int],
) -> None:
    options = {"hidden_activation": hidden, "gate": gate, "pool": pool, "bias": bias}

    def build(package: Any) -> Any:
        block = package.SEBlock(shape[1], 3, **options, one_layer=one_layer, identity=identity)
        with torch.no_grad():  # an identity has no gradient behind its last layer
            for parameter in block.parameters():
                parameter.normal_(std=0.5)
        return block

    check_block(build, shape, dtype, layout, with_shortcut=with_shortcut)


@pytest.mark.parametrize("options", [{"pool": "both"}, {"one_layer": True, "gate": "hard_sigmoid"}], ids=str)
def test_a_changed_layer_is_called(options: dict[str, Any]) -> None:
    """Else it is one op, and no network of PyTorch's between the squeeze and the multiply."""
    block, x, called = triton_attn.SEBlock(16, **options), torch.randn(2, 16, 3, 5), []
    with triton_attn.use_backend("triton"):
        y = block(x)
        block.first().register_forward_hook(lambda *_: called.append(True))
        other = block(x)
    assert len(called) == (2 if options.get("pool") == "both" else 1)
    assert type(y.grad_fn) is not type(other.grad_fn)
    torch.testing.assert_close(y, other)
