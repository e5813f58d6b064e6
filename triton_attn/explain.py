"""Which backend serves each block of a network, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import backend
from .fusion import Fused
from .reference import AttentionBlock
from .reference.resnet import Attended

BLOCKS = AttentionBlock, Fused


@dataclass(frozen=True)
class Served:
    """One block's call: where the block lies in the module, its form, what served it, and why.

    ``block`` is the class's name: by itself the tutorial's form, as ``published.CBAM`` the published one of that name.
    """

    name: str
    block: str
    backend: str
    reason: str


class Explanation(list[Served]):
    """A list of :class:`Served` that prints as a table."""

    def __str__(self) -> str:
        rows = [("module", "block", "backend", "why"), *((s.name, s.block, s.backend, s.reason) for s in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
        )


def explain(module: nn.Module, x: Tensor) -> Explanation:
    """Run ``module`` on ``x`` once and report which backend serves each attention block, and why.

    The pass is in evaluation mode and without gradients, so nothing about the module changes.

    Args:
        module: a block or a network that holds blocks, or one that was fused.
        x: its input.

    Returns:
        One entry per call of an attention block, in the order of the calls; ``print`` shows a table. A plain twin is
        listed as served by the reference. Where ``use_backend("triton")`` is in force and Triton cannot serve a
        block, the entry says why, and nothing is raised.
    """
    training = {each: each.training for each in module.modules()}
    with contextlib.ExitStack() as stack, torch.no_grad():
        listener = _Listener(stack.enter_context(backend.listen()))
        for name, block, at in _calls(module):
            stack.callback(at.register_forward_pre_hook(listener.begins(name, block)).remove)
            stack.callback(at.register_forward_hook(listener.ends).remove)
        module.eval()
        try:
            module(x)
        finally:
            for each, mode in training.items():
                each.training = mode
    return listener.found


def outermost_blocks(module: nn.Module) -> Iterator[tuple[str, AttentionBlock]]:
    """The attention blocks of a module with their paths; those inside of another block are its own affair."""
    yield from outermost(module, (AttentionBlock,))  # type: ignore[misc]


def outermost(module: nn.Module, classes: tuple[type, ...], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of these classes with their paths, but for those inside of another one."""
    if isinstance(module, classes):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from outermost(child, classes, f"{name}.{child_name}" if name else child_name)


def form_of(block: nn.Module) -> str:
    """The name of the block's class, and whether it is the published form: there are two formulas of some names."""
    kind = type(block)
    return f"published.{kind.__name__}" if ".published." in f"{kind.__module__}." else kind.__name__


def _calls(module: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The blocks with their paths, and the module at whose call each is computed.

    In a residual block that is the whole: attention that is listened to itself takes no batch norm in.
    """
    for name, block in outermost(module, (*BLOCKS, Attended)):
        if not isinstance(block, Attended):
            yield name, block, block
            continue
        inside = f"{name}." if name else ""
        for child_name, child in block.named_children():
            if child is block.attention and isinstance(child, AttentionBlock):
                yield f"{inside}{child_name}", child, block
            else:
                yield from ((path, each, each) for path, each in outermost(child, BLOCKS, f"{inside}{child_name}"))


class _Listener:
    """Writes down who was served how, call by call; a call ends where the next one begins, or by itself."""

    def __init__(self, heard: list[backend.Choice]) -> None:
        self.heard, self.found = heard, Explanation()
        self.called: tuple[str, nn.Module] | None = None

    def begins(self, name: str, block: nn.Module) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self.ends()
            self.heard.clear()
            self.called = name, block

        return hook

    def ends(self, *_: object) -> None:
        if self.called is None:
            return
        (name, block), self.called = self.called, None
        choices = [each for each in self.heard if each.backend != backend.REMARK]
        choice = choices[0] if choices else backend.Choice("reference", "a plain twin, which has no other backend")
        remarks = [each.reason for each in self.heard if each.backend == backend.REMARK and choice.backend == "triton"]
        reason = "; ".join([choice.reason, *remarks])
        self.found.append(Served(name or "(itself)", form_of(block), choice.backend, reason))
