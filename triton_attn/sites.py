"""Where attention can stand in a network, and how many channels come out there."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .reference.resnet import Attended

IMAGE = (2, 64, 64)  # how many, and their size


def match(model: nn.Module, pattern: str) -> list[str]:
    """The paths of modules that a pattern stands for, part by part.

    Raises:
        ValueError: there is none.
    """
    parts = pattern.split(".")
    paths = [path for path, _ in model.named_modules() if path]
    found = [path for path in paths if len(own := path.split(".")) == len(parts) and all(map(fnmatchcase, own, parts))]
    if not found:
        near = difflib.get_close_matches(pattern, paths, 3, 0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{pattern!r} is the path of no module of {type(model).__name__}{hint}")
    return found


def host_of(model: nn.Module, site: str) -> str:
    """The module whose output is the site's: of an ``nn.Sequential`` its last child, for all it has are its steps.

    Raises:
        ValueError: an empty one.
    """
    module = model.get_submodule(site)
    while type(module).forward is nn.Sequential.forward:
        if not len(module):  # type: ignore[arg-type]
            raise ValueError(f"{site} is an empty Sequential: there is no last child for attention to stand behind")
        name, module = list(module.named_children())[-1]
        site = f"{site}.{name}"
    return site


def check(model: nn.Module, host: str, child: str) -> None:
    """Raise a ValueError where attention cannot stand behind a module."""
    module = model.get_submodule(host)
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        raise ValueError(f"{host} is a {type(module).__name__}, which is not called: name the modules that it holds")
    if isinstance(module, Attended):
        raise ValueError(
            f"{host} is a block of a network of ours, whose attention stands inside of it: build the network with "
            "attention= and where=, or take a module within the block"
        )
    if hasattr(module, child):
        raise ValueError(f"{host} has a child or an attribute named {child!r} already; remove(model) takes out ours")
    path, _, name = host.rpartition(".")
    siblings = list(model.get_submodule(path).named_children())
    behind = siblings[[key for key, _ in siblings].index(name) + 1 :]
    if isinstance(module, _ConvNd) and behind and isinstance(behind[0][1], _BatchNorm):
        norm, other = f"{path}.{behind[0][0]}" if path else behind[0][0], behind[0][1]
        if other.num_features == module.out_channels:
            raise ValueError(
                f"{host} is a convolution whose batch norm is {norm}: who folds the one into the other would leave out "
                f"what stands between; take {norm}"
            )


def channels(model: nn.Module, hosts: Sequence[str], example: Tensor | tuple[Any, ...] | None) -> dict[str, int]:
    """How many channels the maps have that come out of these modules.

    Raises:
        ValueError: a module's output is no map, is not the same at every call, or cannot be found out.
    """
    found = {host: _own_channels(model.get_submodule(host)) for host in hosts}
    unknown = [host for host, number in found.items() if number is None]
    if unknown or example is not None:
        found |= _seen_channels(model, list(hosts) if example is not None else unknown, example)
    return found  # type: ignore[return-value]


def _own_channels(module: nn.Module) -> int | None:
    """What a module says by itself."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    return module.num_features if isinstance(module, nn.BatchNorm2d) else None


def _seen_channels(model: nn.Module, hosts: Sequence[str], example: Tensor | tuple[Any, ...] | None) -> dict[str, int]:
    """What comes out in one call, which leaves the model as it was."""
    given = example if isinstance(example, tuple) else (_image(model) if example is None else example,)
    outputs: dict[str, list[Any]] = {host: [] for host in hosts}
    with contextlib.ExitStack() as stack, torch.no_grad():
        stack.enter_context(_evaluation(model))
        for host in hosts:
            hook = model.get_submodule(host).register_forward_hook(lambda _, __, y, host=host: outputs[host].append(y))
            stack.callback(hook.remove)
        try:
            model(*given)
        except Exception as error:
            if example is not None:
                raise
            raise ValueError(
                f"how many channels come out of {', '.join(hosts)} is not known, and the network does not run on "
                f"an image of zeros ({error}): give an input as example="
            ) from error
    return {host: _channels_of(host, calls) for host, calls in outputs.items()}


def _image(model: nn.Module) -> Tensor:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no convolution that says what an image is: give one as example=")
    count, *size = IMAGE
    return torch.zeros((count, first.in_channels, *size), dtype=first.weight.dtype, device=first.weight.device)


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _channels_of(host: str, calls: Sequence[Any]) -> int:
    if not calls:
        raise ValueError(f"{host} is not called by the network's forward, so that nothing can stand behind it")
    for y in calls:
        if not isinstance(y, Tensor) or y.dim() != 4:
            what = f"of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise ValueError(f"what comes out of {host} is no map (N, C, H, W), but {what}")
    seen = sorted({y.shape[1] for y in calls})
    if len(seen) > 1:
        raise ValueError(f"{host} is called more than once, with {' and '.join(map(str, seen))} channels")
    return seen[0]
