"""The configs that a launch may take: they are sound, and no bit of a result hangs on which it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import triton_attn
from triton_attn import functional
from triton_attn.ops import launch
from triton_attn.ops.launch import Launch
from triton_attn.tuning import spaces
from triton_attn.tuning.search import same_bits

RULE = {"SPAN": 128, "BLOCK_C": 64, "BLOCK_P": 32, "num_warps": 4}
NORMED = "eca behind a batch norm"
# Every kernel that has configs to choose from, in one of these. The gate has a kernel of its own above 256 channels.
SHAPES = [
    ("se", (2, 40, 9, 7)),
    ("coordinate", (2, 48, 6, 6)),
    ("eca", (1, 24, 33, 35)),
    ("cbam", (2, 40, 9, 7)),
    ("pixel", (2, 32, 8, 8)),
    ("gate", (1, 32, 8, 8)),
    ("gate", (1, 272, 5, 5)),
    ("nonlocal", (1, 24, 16, 15)),
    ("nonlocal", (2, 80, 6, 6)),
    ("published.coordinate", (2, 24, 9, 13)),
    ("published.scse", (2, 72, 9, 13)),
    ("published.simam", (2, 72, 9, 13)),
    (NORMED, (2, 40, 9, 7)),
]


def test_the_rule_comes_first_and_powers_of_two_around_it() -> None:
    found = spaces.configs({"SPAN": (0, 1), "BLOCK_P": (-1, 0, 1)}, RULE)
    assert found[0] == RULE
    assert [(each["SPAN"], each["BLOCK_P"]) for each in found] == [
        (128, 32),
        (128, 16),
        (128, 64),
        (256, 16),
        (256, 32),
        (256, 64),
    ]
    assert all((each["BLOCK_C"], each["num_warps"]) == (64, 4) for each in found)


def test_parameters_that_go_together_and_numbers_of_stages() -> None:
    rule = {"BLOCK_M": 128, "num_warps": 8, "num_stages": 2}
    space: spaces.Space = {("BLOCK_M", "num_warps"): (-1, 0, 1), "num_stages": (2, 3)}
    assert [tuple(each.values()) for each in spaces.configs(space, rule)] == [
        (128, 8, 2),
        (64, 4, 2),
        (64, 4, 3),
        (128, 8, 3),
        (256, 16, 2),
        (256, 16, 3),
    ]
    assert spaces.parameters(space) == ["BLOCK_M", "num_warps", "num_stages"]


@pytest.mark.parametrize(
    ("space", "rule"),
    [
        ({"num_warps": (-3, 3)}, RULE),
        ({"SPAN": (-3,)}, RULE),  # a span smaller than its tiles
        ({"BLOCK_P": (-2,)}, RULE),
        ({"BLOCK_M": (-1,)}, {"BLOCK_M": 64, "num_warps": 4}),
        ({}, RULE),
    ],
)
def test_what_is_not_sound_is_left_out(space: spaces.Space, rule: spaces.Config) -> None:
    assert spaces.configs(space, rule) == [rule]


class Chosen:
    """Looks at launches, and notes those with configs to choose from."""

    def __init__(self) -> None:
        self.tried: dict[str, int] = {}

    def __call__(self, given: Launch) -> None:
        name = given.kernel.fn.__name__
        candidates = spaces.configs(spaces.space_of(given.kernel), given.rule)
        assert len({tuple(each.items()) for each in candidates}) == len(candidates)
        for config in candidates[1:]:
            assert same_bits(given, config), f"{name} gives other bits with {config} than with {given.rule}"
        self.tried[name] = self.tried.get(name, 0) + len(candidates) - 1


def step(name: str, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> None:
    """A training step of a block with the tail of a residual block."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, shortcut = (
        torch.randn(shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_() for _ in range(2)
    )
    if name == NORMED:
        norm = functional.BatchNorm(training=True, activation="silu")
        y = functional.eca(x, torch.randn(3, dtype=dtype), shortcut, norm=norm)
    else:
        y = triton_attn.create_attention(name, shape[1], dtype=dtype)(x, shortcut=shortcut)
    y.backward(torch.randn_like(y))


@pytest.fixture
def dots_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies by a library in which a row's bits may hang on how many rows there are.

    On a GPU they do not: tests/tuning/test_sums.py.
    """
    from triton.runtime import interpreter

    def dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
        products = a.data.astype(d.data.dtype)[..., None] * b.data.astype(d.data.dtype)[..., None, :, :]
        return interpreter.TensorHandle(products.sum(axis=-2) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.mark.interpreter
@pytest.mark.usefixtures("dots_row_by_row")
@pytest.mark.parametrize(
    ("name", "shape", "channels_last"),
    [(*each, bool(i % 2)) for i, each in enumerate(SHAPES)],
    ids=[f"{name}-{shape[1]}" for name, shape in SHAPES],
)
def test_no_config_changes_a_bit(name: str, shape: tuple[int, ...], channels_last: bool) -> None:
    """In one layout each: tests/gpu/test_tuning_on_gpu.py has both."""
    seen = Chosen()
    with launch.watch(seen):
        step(name, shape, channels_last, torch.float16)
    assert sum(seen.tried.values()) >= 1


@pytest.mark.interpreter
def test_every_space_is_of_a_kernel_that_chooses_and_is_tried_above() -> None:
    started: set[str] = set()
    with launch.watch(lambda given: started.add(given.kernel.fn.__name__)):
        for name, shape in SHAPES:
            step(name, shape, True, torch.float32)
    started.discard("softmax_bwd_kernel")
    known = {name: space for name, space in spaces.known_spaces().items() if space}
    assert known.keys() <= started
    assert started <= spaces.known_spaces().keys()


@pytest.mark.interpreter
def test_other_bits_are_seen() -> None:
    found = {}

    def spoil(given: Launch) -> None:
        name, rule = given.kernel.fn.__name__, given.rule
        if name == "squeeze_fwd_kernel":  # sums in tiles of other sizes are other sums
            found[name] = same_bits(given, {**rule, "BLOCK_P": 2 * rule["BLOCK_P"]})
        if name == "apply_gate_fwd_kernel":  # most of the map is not written
            lazy = replace(given, grid=lambda config: given.grid(config) if config == rule else (1,))
            found[name] = same_bits(lazy, {**rule, "SPAN": 2 * rule["SPAN"]})

    with launch.watch(spoil):
        step("eca", (1, 24, 33, 35), True, torch.float32)
    assert found == {"squeeze_fwd_kernel": False, "apply_gate_fwd_kernel": False}
