"""What :mod:`tests.ops.test_plans` asks of a process of its own, over a driver that does nothing.

Every function here whose name begins with ``check`` is one; what it raises is its failure.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import threading
import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

# Before anything of Triton's.
from tests.ops.stubbed import (
    BF16,
    CHANNELS,
    MODES,
    NORMED,
    block_of,
    draw,
    played,
    plays,
    same_launches,
    spy,
    step,
    stub,
)

# isort: split
import triton_attn
from triton_attn import backend
from triton_attn.ops import launch, library
from triton_attn.registry import BLOCKS


def check_the_same_launches() -> None:
    for name, channels_last, (size, dtype), tail, mode in itertools.product(
        sorted(BLOCKS),
        (False, True),
        (((8, 8), BF16), ((33, 41), torch.float32)),
        ("", "with shortcut", "x twice"),
        MODES,
    ):
        if tail == "x twice" and not (channels_last and mode in ("inference", "training")):
            continue
        if name == "nonlocal" and size != (8, 8):
            continue  # its projections alone take longer than all else
        try:
            same_launches(name, channels_last, dtype, size, tail, mode)
        except AssertionError as error:
            raise AssertionError(f"{name}, {channels_last=}, {size}, {tail=}, {mode}: {error}") from error


def check_the_same_launches_of_slices() -> None:
    for name, channels_last, cut, mode in itertools.product(
        ("se", "eca", "cbam", "pixel"), (False, True), ("batch", "odd"), ("inference", "training")
    ):
        same_launches(name, channels_last, BF16, (8, 8), "with shortcut", mode, cut)


def check_the_same_launches_behind_a_batch_norm() -> None:
    for channels_last, tail, mode in itertools.product((False, True), ("", "with shortcut"), MODES):
        same_launches(NORMED, channels_last, BF16, (8, 8), tail, mode)


def check_a_call_plays_one_plan_each_way() -> None:
    for name in (*sorted(BLOCKS), NORMED):
        block, x = block_of(name), draw()
        grad = torch.ones_like(x)
        leaf = x.clone().requires_grad_()

        def infer(block: nn.Module = block, x: Tensor = x) -> Any:
            with torch.no_grad():
                return block(x)

        infer()
        step(block, leaf, grad=grad)
        assert played(infer) == 1, name
        assert played(lambda: step(block, leaf, grad=grad)) == 2, name  # noqa: B023


def check_a_wide_gate_is_one_plan_each_way() -> None:
    for name in ("pixel", "gate"):
        block, x = block_of(name, channels=512), draw((2, 512, 4, 4))
        leaf = x.clone().requires_grad_()
        step(block, leaf)
        assert played(lambda: step(block, leaf)) == 2, name  # noqa: B023


def check_inference_allocates_the_result_and_scratch() -> None:
    block, x = block_of("se"), draw()
    with torch.no_grad():
        block(x)
        with plays() as seen:
            block(x)
        spy.alive = []
        library.forget()
        block(x)
        block(x)
        made = [t.numel() * t.itemsize for t in spy.alive]
    assert len(seen[0]._empties) == 1
    assert len(made) == 4, made  # y and scratch, of either call
    assert made[:2] == made[2:]


def check_who_goes_the_long_way() -> None:
    block, x = block_of(), draw()

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    def train() -> None:
        block(x.clone().requires_grad_()).sum().backward()

    block(x)
    train()
    assert played(lambda: block(x)) == 1
    with Watch() as watch:
        block(x)
    assert [each for each in watch.seen if "triton_attn" in each] == ["triton_attn.channel_gate.default"]
    with Functions():
        block(x)  # by the registered op, whose implementation may play
    with torch.device("cpu"):  # the mode of torch.set_default_device, which changes nothing here
        assert played(lambda: block(x)) == 1
    with launch.watch(lambda _: None):
        assert played(lambda: block(x)) == 0
    with triton_attn.use_backend("reference"):
        assert played(lambda: block(x)) == 0
    with backend.listen() as heard:
        block(x)
    assert [each.backend for each in heard] == ["triton"]
    assert played(lambda: block(x)) == 1


def check_fake_tensors_and_make_fx() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    block, x = block_of(), draw()
    block(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert played(lambda: block(mode.from_tensor(x))) == 0
    graph = make_fx(lambda t: block(t))(x)
    assert "triton_attn.channel_gate.default" in {str(node.target) for node in graph.graph.nodes}


def check_compiled() -> None:
    block, x = block_of(), draw()
    graphs: list[list[str]] = []

    def look(graph: Any, _: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(block, fullgraph=True, backend=look)
    with torch.no_grad():
        block(x)
        compiled(x)
        compiled(x)
        assert played(lambda: compiled(x)) == 1  # the op's implementation plays
    assert len(graphs) == 1, "what plans there are is nothing for a graph to depend on"
    assert [each for each in graphs[0] if "triton_attn" in each] == ["triton_attn.channel_gate.default"]
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    for _ in range(2):
        compiled(leaf).sum().backward()
    assert played(lambda: compiled(leaf).sum().backward()) == 2


def check_checks_are_made_for_every_kind_of_call() -> None:
    """What fits no plan is checked, also beside a plan that differs in one thing."""
    block, x = block_of("se", torch.float32), draw(dtype=torch.float32)
    shortcut = draw(dtype=torch.float32)
    with torch.autocast("cpu", BF16):
        block(x.bfloat16())
        assert played(lambda: block(x.bfloat16())) == 1
    block(x, shortcut)
    block(x, shortcut)
    for wrong, message in (
        (lambda: block(x.bfloat16()), "but the block's parameters are"),  # as under autocast
        (lambda: block(x[:, :64]), "72 channels"),
        (lambda: block(x, shortcut[:1]), "shortcut must have"),
        (lambda: block(x[0]), "4-D"),
        (lambda: block(None), "torch.Tensor"),
        (lambda: block(x.long()), "int64"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            wrong()


def check_a_wider_shortcut_takes_pytorchs_way() -> None:
    block, x = block_of(), draw()
    shortcut = draw(dtype=torch.float32)
    for _ in range(2):
        assert block(x, shortcut).dtype == torch.float32


def check_subclasses_and_strange_tensors() -> None:
    class Sub(Tensor):
        pass

    block, x = block_of(), draw()
    block(x)
    assert played(lambda: block(x.as_subclass(Sub))) == 0
    given = spy.trace(lambda: [block(torch._neg_view(x))], [x])[0]
    assert "input 0" not in str(given), "x is what is to be negated, and not what is to be gated"
    assert played(lambda: block(draw((0, CHANNELS, 8, 8)))) <= 1
    assert block(draw((0, CHANNELS, 8, 8))).shape == (0, CHANNELS, 8, 8)


def check_saved_tensors_that_come_back_as_others() -> None:
    block, x = block_of(), draw()

    def train() -> None:
        block(x.clone().requires_grad_()).square().sum().backward()

    train()
    with torch.autograd.graph.save_on_cpu():
        train()
    # At another alignment, where another kernel is wanted.
    seen = []

    def shifted(t: Tensor) -> Tensor:
        flat = torch.empty(t.numel() + 1, dtype=t.dtype)
        seen.append(torch.as_strided(flat, t.shape, t.stride(), 1).copy_(t))
        return seen[-1]

    with torch.autograd.graph.saved_tensors_hooks(shifted, lambda t: t):
        train()
    assert seen
    checkpoint(block, x.clone().requires_grad_(), use_reentrant=False).sum().backward()


def check_gradients_of_other_strides() -> None:
    block, leaf = block_of(), draw().requires_grad_()
    block(leaf).sum().backward()  # an expanded gradient
    block(leaf).backward(draw(channels_last=False))
    block(leaf).backward(draw())
    assert leaf.grad is not None
    assert leaf.grad.stride() == leaf.stride()


def check_the_matmul_precision_is_part_of_a_kind() -> None:
    block, x = block_of("pixel", torch.float32, 48), draw((2, 48, 8, 8), torch.float32)
    block(x)
    before = len(ops_plans("position_gate"))
    torch.set_float32_matmul_precision("high")
    try:
        block(x)
        assert len(ops_plans("position_gate")) == before + 1
    finally:
        torch.set_float32_matmul_precision("highest")


def ops_plans(name: str) -> dict[Any, Any]:
    from triton_attn import ops

    return getattr(ops, name.upper()).forward._plans


def check_plans_are_bounded_and_forgotten() -> None:
    from triton_attn.tuning import chips, selection

    library.forget()
    block, x = block_of(), draw()
    most, library.PLANS = library.PLANS, 3
    try:
        for n in range(1, 9):
            block(draw((n, CHANNELS, 4, 4)))
            assert len(ops_plans("channel_gate")) <= 3
    finally:
        library.PLANS = most
    block(x)
    assert ops_plans("channel_gate")
    selection.forget()
    assert not ops_plans("channel_gate")
    block(x)
    # What is set for this thread alone makes no plan, and plays none: all threads have the same.
    for context in (selection.use_entries({}), chips.assume(chips.CHIPS["gfx942"])):
        with context:
            assert played(lambda: block(x)) == 0
            block(draw((9, CHANNELS, 4, 4)))
        assert len(ops_plans("channel_gate")) == 1
    assert played(lambda: block(x)) == 1


def check_hooks_see_launches() -> None:
    from triton import knobs

    block, x = block_of(), draw()
    block(x)
    names: list[str] = []

    def note(metadata: Any) -> None:
        names.append(metadata.get()["name"])

    chain = knobs.runtime.launch_enter_hook
    if hasattr(chain, "add"):
        chain.add(note)
    else:
        knobs.runtime.launch_enter_hook = note
    try:
        assert played(lambda: block(x)) == 1
    finally:
        if hasattr(chain, "add"):
            chain.remove(note)
        else:
            knobs.runtime.launch_enter_hook = chain
    assert len(names) == 3  # squeeze, network, multiply


def check_several_threads() -> None:
    library.forget()
    blocks = [block_of(name) for name in ("se", "eca", "cbam", "pixel")]
    failed: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for n in range(30):
                block = blocks[(i + n) % len(blocks)]
                step(block, draw((1 + n % 3, CHANNELS, 4, 4)).requires_grad_())
                with torch.no_grad():
                    block(draw((1 + n % 3, CHANNELS, 4, 4)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed, failed


def check_nothing_is_kept_alive() -> None:
    """A plan holds kernels, and no tensor."""
    block = block_of()

    def count() -> int:
        gc.collect()
        return sum(isinstance(each, Tensor) for each in gc.get_objects())

    step(block, draw().requires_grad_())
    spy.alive = []
    before = count()
    library.forget()
    step(block, draw().requires_grad_())
    spy.alive = []
    assert count() <= before


def check_inference_mode() -> None:
    block, x = block_of(), draw()
    with torch.inference_mode():
        block(x)
        assert played(lambda: block(x)) == 1
        made = draw()
        assert played(lambda: block(made)) == 1
        assert block(made).is_inference()


def main() -> None:
    """Run the checks that are named, or all, and print their failures as JSON."""
    checks = {name: check for name, check in globals().items() if name.startswith("check_")}
    failures = {}
    for name in sys.argv[1:] or checks:
        try:
            checks[name]()
        except BaseException:
            failures[name] = traceback.format_exc()
    print(json.dumps({"checks": list(checks), "failures": failures, "launches": stub.stub_launches()}))


if __name__ == "__main__":
    main()
