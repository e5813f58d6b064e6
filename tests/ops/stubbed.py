"""What the checks of :mod:`tests.ops.on_a_stub_driver` see with: which plans are played, and what the driver gets.

Importing it puts a driver that does nothing in the place of CUDA's, so it is for a process of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.counted import stub_driver

warnings.filterwarnings("ignore", message="CUDA initialization")
torch.set_num_threads(1)
stub = stub_driver.install()

from triton.backends.nvidia.driver import CudaLauncher  # noqa: E402

import triton_attn  # noqa: E402
from triton_attn.ops import launch, library, plan  # noqa: E402
from triton_attn.registry import BLOCKS  # noqa: E402

CHANNELS = 72
BF16 = torch.bfloat16


@contextmanager
def plays() -> Iterator[list[plan.Plan]]:
    """The plans played within."""
    seen: list[plan.Plan] = []
    play = plan.Plan.play

    def noted(self: plan.Plan, *given: Any) -> Any:
        seen.append(self)
        return play(self, *given)

    plan.Plan.play = noted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        plan.Plan.play = play  # type: ignore[method-assign]


def played(call: Callable[[], Any]) -> int:
    with plays() as seen:
        call()
    return len(seen)


NORMED = "behind a batch norm"


class Normed(nn.Module):
    """An ECA block and the batch norm in front, as one call."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.block = triton_attn.ECABlock(channels)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        y = self.block.behind(self.norm, x, shortcut)
        assert y is not None
        return y


def block_of(name: str = "se", dtype: torch.dtype = BF16, channels: int = CHANNELS) -> nn.Module:
    torch.manual_seed(0)
    return (Normed if name == NORMED else BLOCKS[name])(channels).to(dtype)


def draw(
    shape: tuple[int, ...] = (2, CHANNELS, 8, 8), dtype: torch.dtype = BF16, channels_last: bool = True, cut: str = ""
) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if cut == "batch":
        return torch.randn(shape[0] + 1, *shape[1:]).to(dtype).contiguous(memory_format=memory_format)[1:]
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    if cut == "odd":  # at an address that is no multiple of 16
        return torch.as_strided(torch.randn(x.numel() + 1).to(dtype), shape, x.stride(), 1)
    return x


def step(block: nn.Module, x: Tensor, shortcut: Tensor | None = None, grad: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients of what wants one."""
    kw = {} if shortcut is None else {"shortcut": shortcut}
    if not torch.is_grad_enabled():
        return [block(x, **kw)]
    y = block(x, **kw)
    own = [x] if shortcut is None or shortcut is x else [x, shortcut]
    wanted = [t for t in (*own, *block.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y) if grad is None else grad)]


class Spy:
    """Every launch as the driver gets it: the kernel, the grid, its constants, and its tensors by who they are."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.alive: list[Any] = []
        init = CudaLauncher.__init__

        def spied_init(launcher: Any, src: Any, metadata: Any) -> None:
            init(launcher, src, metadata)
            types, start = list(src.signature.values()), launcher.launch

            def spied(*given: Any) -> None:
                # Of late the arguments come together.
                head, arguments = (
                    (given[:-1], given[-1])
                    if type(given[-1]) is tuple
                    else (given[: -len(types)], given[-len(types) :])
                )
                self.alive += [each for each in arguments if isinstance(each, Tensor)]
                pointers = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
                plain = [each for each in head if isinstance(each, (int, tuple, bytes))]  # hooks see no such launch
                self.launches.append((id(launcher), plain, list(zip(types, pointers, strict=True))))
                start(*given)

            launcher.launch = spied

        CudaLauncher.__init__ = spied_init
        allocator = plan._allocator

        def keeping(device: torch.device) -> Callable[..., Tensor]:
            allocate = allocator(device)

            def empty(*arguments: Any) -> Tensor:
                self.alive.append(allocate(*arguments))
                return self.alive[-1]

            return empty

        plan._allocator = keeping

    def trace(self, run: Callable[[], list[Tensor]], inputs: list[Tensor | None]) -> Any:
        """What ``run`` starts and returns, each tensor by its place among the inputs and what was made since."""
        self.launches, self.alive = [], []
        results = run()
        names: dict[int, str] = {}
        for i, each in enumerate(inputs):
            if each is not None:
                names.setdefault(each.data_ptr(), f"input {i}")

        def name(kind: str, given: Any) -> Any:
            if kind.startswith("*") and given:
                return kind, names.setdefault(given, f"made {len(names)}")
            return kind, given

        started = [(*head, [name(*each) for each in given]) for *head, given in self.launches]
        returned = [(names.get(t.data_ptr(), "?"), tuple(t.shape), t.stride(), t.dtype) for t in results]
        self.alive = []
        return started, returned


spy = Spy()
MODES = ("inference", "training", "weights alone", "map alone")


def same_launches(name: str, channels_last: bool, dtype: torch.dtype, size: tuple[int, int], tail: str, mode: str,
                  cut: str = "") -> None:  # fmt: skip
    """A plan starts, to the pointer, what the launcher starts."""
    # Of more, a gate at every position is the library's business in float32.
    channels = 48 if name in ("gate", "pixel") and dtype == torch.float32 else CHANNELS
    block = block_of(name, dtype, channels)
    x, grad, other = (draw((2, channels, *size), dtype, channels_last, cut) for _ in range(3))
    for p in block.parameters():
        p.requires_grad_(mode in ("training", "weights alone"))
    x.requires_grad_(mode in ("training", "map alone"))
    shortcut = {"": None, "with shortcut": other, "x twice": x}[tail]
    if shortcut is other:
        other.requires_grad_(mode in ("training", "map alone"))

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(mode != "inference"):
            return step(block, x, shortcut, grad)

    inputs = [x, other, grad, *block.parameters()]
    is_direct = launch.is_direct
    launch.is_direct = lambda: False
    try:
        run()
        long_way = spy.trace(run, inputs)
    finally:
        launch.is_direct = is_direct
    library.forget()
    run()
    with plays() as seen:
        short = spy.trace(run, inputs)
    assert seen, "nothing was played"
    if name != "nonlocal":  # the library's products return what may lie where something of ours lay before
        assert short[1] == long_way[1], (short[1], long_way[1])
    assert len(short[0]) == len(long_way[0]) > 0
    for a, b in zip(short[0], long_way[0], strict=True):
        assert a == b, f"{a}\n{b}"
