"""Attention behind any module of a network, without moving a key: :func:`insert` and :func:`remove`.

The block is a child of the module that it stands behind, named ``attention``, and a forward hook of that module has its
output go through it. So the network's own keys stay, whole models are pickled, copied, compiled, traced and sharded as
before, and who reads attributes of a module still finds them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from . import sites
from .reference.registry import look_up
from .reference.tracing import leaf
from .registry import ALL, create_attention

CHILD = "attention"
Attention = str | Callable[[int], nn.Module]


@dataclass(frozen=True)
class Insertion:
    """One block: the module that it stands behind, its own path, class and channels, and its keys."""

    site: str
    path: str
    block: str
    channels: int
    keys: tuple[str, ...]


class Insertions(list[Insertion]):
    """A list of :class:`Insertion` that prints as a table."""

    @property
    def keys(self) -> list[str]:
        """The keys that the network's state dict has more than before."""
        return [key for each in self for key in each.keys]

    def __str__(self) -> str:
        rows = [("behind", "block", "channels", "keys")]
        rows += [(each.site, each.block, str(each.channels), f"{each.path}.*") for each in self]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join("  ".join(row[i].ljust(widths[i]) for i in range(4)).rstrip() for row in rows)


def insert(
    model: nn.Module,
    attention: Mapping[str, Attention],
    *,
    example: Tensor | tuple[Any, ...] | None = None,
    identity: bool = True,
) -> Insertions:
    """Put attention behind modules of a network, in place.

    Weights load as before, into the network and out of it: into one with attention by ``strict=False``, where exactly
    the new keys are missing. All sites are checked before anything is changed.

    Args:
        model: the network.
        attention: from the paths of modules to a block, which is a name (one of ``list_attention("all")``) or a
            callable ``channels -> nn.Module``. Parts of a path are patterns: ``"layer[12].*.bn2"`` is
            ``layer1.0.bn2`` and so on. Behind an ``nn.Sequential`` is behind its last child.
        example: an input, or several; where a module has no attribute that says how many channels come out of it, the
            network runs on it once, in evaluation. By default two small images of zeros.
        identity: whether the blocks change nothing at first, those that go by a name.

    Returns:
        What was inserted where; ``print`` shows a table, ``.keys`` are the new keys.

    Raises:
        TypeError: ``model`` is no module, or what is to be inserted is neither a name nor a callable.
        ValueError: a pattern that matches nothing (the error says the nearest paths), an unknown name, or a site where
            nothing can stand: what comes out is no map, the next module is the batch norm of a convolution, there is a
            child of the name ``attention`` already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    chosen: dict[str, tuple[str, Attention]] = {}
    for pattern, block in attention.items():
        if not isinstance(block, str) and not callable(block):
            raise TypeError(f"attention[{pattern!r}] must be a name or a callable, got {type(block).__name__}")
        if isinstance(block, str):
            look_up("attention", block, ALL)
        for site in sites.match(model, pattern):
            host = sites.host_of(model, site)
            if host in chosen:
                raise ValueError(f"{pattern!r} and {chosen[host][0]!r} are both to stand behind {host}")
            chosen[host] = pattern, block
    for host in chosen:
        sites.check(model, host, CHILD)
    channels = sites.channels(model, list(chosen), example)
    made = {
        host: _make(model.get_submodule(host), channels[host], block, identity) for host, (_, block) in chosen.items()
    }
    done = Insertions()
    for host, block in made.items():
        module = model.get_submodule(host)
        module.add_module(CHILD, block)
        module.register_forward_hook(run_attention)
        path = f"{host}.{CHILD}"
        keys = tuple(f"{path}.{key}" for key in block.state_dict())
        done.append(Insertion(host, path, type(block).__name__, channels[host], keys))
    return done


def remove(model: nn.Module) -> list[str]:
    """Take out all that :func:`insert` put into a network.

    Args:
        model: the network, with inserted attention or without.

    Returns:
        The paths of the modules that attention stood behind.
    """
    found = []
    for path, module in model.named_modules():
        handles = [handle for handle, hook in module._forward_hooks.items() if hook is run_attention]
        for handle in handles:
            del module._forward_hooks[handle]
        if handles:
            delattr(module, CHILD)
            found.append(path)
    return found


def run_attention(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
    """The hook of a module that attention stands behind; at the top of a module of ours, where pickles find it."""
    block = module._modules[CHILD]
    assert block is not None
    return leaf(block, output) if isinstance(output, torch.fx.Proxy) else block(output)


def _make(host: nn.Module, channels: int, block: Attention, identity: bool) -> nn.Module:
    """A block like its host: on its device, in its dtype and mode."""
    like = next((t for t in host.parameters() if t.is_floating_point()), None)
    where: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
    if isinstance(block, str):
        options = {"identity": identity} if "identity" in inspect.signature(ALL[block]).parameters else {}
        made = create_attention(block, channels, **options, **where)
    else:
        made = block(channels)
        if not isinstance(made, nn.Module):
            raise TypeError(f"attention must make a torch.nn.Module, got {type(made).__name__}")
        made = made.to(**where)
    return made.train(host.training)
