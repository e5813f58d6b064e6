"""The blocks and what they are measured against, all on the same inputs with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import triton_attn
from benchmarks.files import on_gpu
from benchmarks.timed.cases import BACKWARD, FORWARD, BlockCase
from benchmarks.timed.formulas import FORMULAS
from benchmarks.timed.turns import NotServed
from triton_attn import backend
from triton_attn.reference.registry import BLOCKS as PLAIN

Run = Callable[[], tuple[Tensor, ...]]
CHECKED_IMAGES = 2  # an image's result does not depend on its batch, and float64 at full size takes long


@dataclass(frozen=True)
class Setup:
    """The inputs of a case, which every provider gets."""

    case: BlockCase
    x: Tensor
    grad: Tensor
    state: dict[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, case: BlockCase, device: torch.device) -> Setup:
        """Draw them, always the same."""
        torch.manual_seed(0)
        dtype = getattr(torch, case.dtype)
        memory_format = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[case.layout]
        x, grad = (
            torch.randn(case.shape, device=device).to(dtype).contiguous(memory_format=memory_format) for _ in range(2)
        )
        state = {name: t.to(device, dtype) for name, t in PLAIN[case.block](case.shape[1]).state_dict().items()}
        return cls(case, x.requires_grad_(case.direction != FORWARD), grad, state)

    def load(self, block: nn.Module) -> nn.Module:
        """A block with these weights, where and what the map is."""
        block = block.to(self.x.device, self.x.dtype)
        block.load_state_dict(self.state)
        return block

    def result(self, block: nn.Module) -> tuple[Tensor, ...]:
        """The output, and but for a forward the gradient of the map."""
        if self.case.direction == FORWARD:
            with torch.no_grad():
                return (block(self.x),)
        y = block(self.x)
        return y.detach(), torch.autograd.grad(y, self.wanted(block), self.grad)[0]

    def wanted(self, block: nn.Module) -> list[Tensor]:
        """What a backward makes the gradients of."""
        return [self.x, *block.parameters()]

    def run(self, block: nn.Module) -> Run:
        """The thing to time; a backward is one of a graph that is kept."""
        if self.case.direction != BACKWARD:
            return lambda: self.result(block)
        y, wanted = block(self.x), self.wanted(block)
        return lambda: torch.autograd.grad(y, wanted, self.grad, retain_graph=True)


def ours(setup: Setup) -> nn.Module:
    """The block as a user gets it: on a GPU, and under the interpreter, on Triton.

    Raises:
        NotServed: it has no kernels for this case.
    """
    block = setup.load(triton_attn.create_attention(setup.case.block, setup.x.shape[1]))
    with backend.listen() as heard:  # without a run, which would compile the inference as well
        served = backend.use_triton(setup.x)
    if not served and (on_gpu() or backend.interpreting()):
        raise NotServed(f"{setup.case.block} is not served by Triton: {heard[-1].reason}")
    return block


def eager(setup: Setup) -> nn.Module:
    return setup.load(PLAIN[setup.case.block](setup.x.shape[1]))


def timm(setup: Setup) -> nn.Module:
    """timm's block of that name. The same formula gets the same weights."""
    from timm.layers import EcaModule, SEModule
    from timm.layers.cbam import CbamModule

    channels = setup.x.shape[1]
    block: nn.Module
    if setup.case.block == "cbam":
        block = CbamModule(channels)
        return block.to(setup.x.device, setup.x.dtype)
    if setup.case.block == "eca":
        block = EcaModule(kernel_size=3)
    else:
        block = SEModule(channels, rd_channels=setup.state["fc1.bias"].shape[0])
    state = {name: setup.state[name].view(own.shape) for name, own in block.state_dict().items()}  # fc as 1×1 convs
    block.load_state_dict(state)
    return block.to(setup.x.device, setup.x.dtype)


def copy(setup: Setup) -> nn.Module:
    """Read the map and write it: what the memory can do."""
    found: Any = nn.Identity()
    found.forward = torch.empty_like(setup.x).copy_
    return found


PROVIDERS: dict[str, Callable[[Setup], Any]] = {
    "ours": ours,
    "eager": eager,
    "formula": lambda setup: setup.load(FORMULAS[setup.case.block](setup.x.shape[1])),
    "compile": lambda setup: torch.compile(eager(setup), fullgraph=True, dynamic=False),
    "timm": timm,
    "copy": copy,
}
OWN_FORMULA = "timm (its own formula)"
# CBAM's channel gate takes the maximum too and has no biases, and its spatial gate a batch norm and no bias.
TIMM = {"se": "timm", "eca": "timm", "cbam": OWN_FORMULA}


class WrongResult(Exception):
    """A provider computes something else than the reference, and shall not be timed."""


@dataclass(frozen=True)
class Reference:
    """The results that others are held to: float64's, of the first images, and eager PyTorch's in the case's dtype."""

    exact: tuple[Tensor, ...]
    plain: tuple[Tensor, ...]

    @classmethod
    def of(cls, setup: Setup) -> Reference:
        """Run both."""
        block = PLAIN[setup.case.block](setup.x.shape[1]).to(setup.x.device, torch.float64)
        block.load_state_dict(setup.state)
        x = setup.x[:CHECKED_IMAGES].detach().double().requires_grad_()
        y = block(x)
        (dx,) = torch.autograd.grad(y, x, setup.grad[:CHECKED_IMAGES].double())
        return cls((y.detach(), dx), setup.result(eager(setup)))

    def check(self, result: tuple[Tensor, ...], same_formula: bool = True) -> None:
        """Hold a result to float64's: its error may be twice eager PyTorch's, plus four rounding steps of the dtype.

        Raises:
            WrongResult: it is not within that (where the formula is the same), not finite, or of another kind.
        """
        for name, ours, plain, exact in zip(("output", "gradient"), result, self.plain, self.exact, strict=False):
            if ours.shape != plain.shape or ours.dtype != plain.dtype:
                raise WrongResult(f"the {name} is {tuple(ours.shape)}, {ours.dtype}, and not as the reference's")
            if not ours.isfinite().all():
                raise WrongResult(f"the {name} is not finite")
            bound = 2 * _error(plain, exact) + 4 * torch.finfo(ours.dtype).eps * exact.abs().max().item()
            error = _error(ours, exact)
            if same_formula and not error <= bound:
                raise WrongResult(f"the {name} is off by {error:.3g}, allowed are {bound:.3g}")


def _error(result: Tensor, exact: Tensor) -> float:
    return (result[:CHECKED_IMAGES].detach().double() - exact).abs().max().item()
