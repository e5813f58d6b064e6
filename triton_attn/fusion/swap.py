"""fuse and unfuse: modules of known classes change to their fused class and back, in place."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ..reference import AttentionBlock
from .fused import Fused
from .report import Entry, Report
from .sources import fingerprint
from .tails import Tail
from .within import Within

Classes = dict[type[nn.Module], type[Fused]]

AROUND = Tail, Within
"""Recipes for blocks around attention, with which something else comes."""

ADAPTERS = {
    "torch": ("sequential",),
    "timm": ("timm", "timm_maps", "timm_sums", "timm_tails", "timm_within"),
    "timm.layers.coord_attn": ("timm_strips",),
    "torchvision": ("torchvision",),
    "monai": ("monai",),
    "segmentation_models_pytorch": ("segmentation_models_pytorch",),
    "ultralytics": ("ultralytics",),
}
"""Libraries or parts of them, and the modules in ``adapters`` that know their attention; imported where these are."""

_LOOKS_LIKE_A_GATE = re.compile(
    r"^SE|SE$|Ese|SELayer|SEModule|SEBlock|Squeeze(?!Net)|^C?[Ee]ca|Cbam|CBAM|Coord|NonLocal|GlobalContext$|GatherExcite|"
    r"SelectiveKernel$|SplitAttn|EfficientLocal|StripAttn|ChannelAtt|SpatialAtt|SCSE|AttentionGate|^AttentionBlock$"
)
NO_ADAPTER = "no adapter for it"
LEFT = {
    "BatNonLocalAttn": "products of blocks of the map, between convolutions: no gate, and no softmax over positions",
    "SimpleCoordAttn": "gates of rows and of columns are added before their sigmoid: no kernel for it",
    "StripAttn": "gates of rows and of columns are added before their sigmoid: no kernel for it",
}
"""What has no adapter for a reason, by the names of classes."""
_fused: Classes = {}


def register_adapter(fused: type[Fused]) -> type[Fused]:
    """Have :func:`fuse` give modules of a class of yours a forward on our functions.

    ::

        class FusedMySE(fusion.Fused, MySE, by=fusion.Chain("fc1", "act", "fc2", "gate")):
            pass

        triton_attn.register_adapter(FusedMySE)  # or as a decorator

    Args:
        fused: the class that modules get in place of theirs, whose base after ``Fused`` is theirs.

    Returns:
        The class.

    Raises:
        TypeError: no such class, or one that is not to be found under its name, so that it could not be pickled.
    """
    if not (isinstance(fused, type) and issubclass(fused, Fused) and "fused_by" in fused.__dict__):
        raise TypeError(f"fused must be a class made as `class Mine(Fused, Theirs, by=recipe)`, got {fused!r}")
    if "<locals>" in fused.__qualname__:
        raise TypeError(f"fused must stand at the top of a module, where pickles find it, got {fused.__qualname__}")
    _fused[fused.fused_from] = fused
    return fused


def known() -> Classes:
    """From plain classes to fused ones, of the libraries that are imported."""
    for library, adapters in ADAPTERS.items():
        for adapter in adapters if library in sys.modules else ():
            importlib.import_module(f"{__package__}.adapters.{adapter}")
    return _fused


def fuse(model: nn.Module, tails: bool = True) -> Report:
    """Have the attention in a network of another library run on our kernels, in place.

    Modules of the known classes of timm and torchvision, where these are imported, and of those that
    :func:`register_adapter` made known, get a fused subclass of their class. Parameters, keys, hooks and everything
    else stays as it is; on a CPU a fused module runs its plain class's forward. What is not served exactly is left, now
    or, where something is done to a module later, at the call.

    Args:
        model: the network; a fused one may be fused again.
        tails: whether blocks around attention are fused too, so that what stands next to it comes with it: shortcut and
            ReLU behind, a batch norm and an activation in front.

    Returns:
        What became of every module that is attention by its name or class: ``print`` shows a table, ``.left`` holds
        what was not fused.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    classes = known()
    modules = dict(model.named_modules())
    entries = {path: _fuse_one(path, module, classes) for path, module in modules.items()}
    for path, module in modules.items():
        if tails and (by := _around(module, classes)) is not None:
            entries |= _fuse_around(path, module, by, entries, classes)
    return Report(entry for path, entry in entries.items() if entry is not None and not _only_holds(path, entries))


def _only_holds(path: str, entries: dict[str, Entry | None]) -> bool:
    """Whether what looks like attention holds what is, and is no more than that."""
    entry, inside = entries[path], f"{path}." if path else ""
    if entry is None or entry.note != NO_ADAPTER:
        return False
    return any(other is not None and key != path and key.startswith(inside) for key, other in entries.items())


def _fuse_one(path: str, module: nn.Module, classes: Classes) -> Entry | None:
    path, cls = path or "(itself)", type(module)
    if _around(module, classes) is not None:
        return None
    if isinstance(module, Fused):
        reason = module.fused_by.obstacle(module)
        return Entry(path, module.fused_from.__name__, reason is None, reason or module.fused_by.how(module))
    fused = classes.get(cls)
    if fused is None:
        reason = _why_unknown(module, classes)
        return None if reason is None else Entry(path, cls.__name__, False, reason)
    reason = _obstacle(module, fused)
    if reason is None:
        module.__class__ = fused  # type: ignore[assignment]
    return Entry(path, cls.__name__, reason is None, reason or fused.fused_by.how(module))


def _around(module: nn.Module, classes: Classes) -> Tail | Within | None:
    """The recipe for a block around attention."""
    fused = type(module) if isinstance(module, Fused) else classes.get(type(module))
    by = None if fused is None else fused.fused_by
    return by if isinstance(by, AROUND) else None


def _fuse_around(
    path: str, block: nn.Module, by: Tail | Within, entries: Mapping[str, Entry | None], classes: Classes
) -> dict[str, Entry | None]:
    """The entries of the attention inside of a block, which is fused if it can be, as they are then."""
    names = (f"{path}.{name}" if path else name for name in by.attentions(block))
    inside = {name: entry for name in names if (entry := entries.get(name)) is not None and entry.fused}
    if not inside:
        return {}
    reason = by.obstacle(block) if isinstance(block, Fused) else _obstacle(block, classes[type(block)])
    if reason is not None:
        without = f"; without its {by.what}: {reason}"
        return {name: replace(each, note=each.note + without) for name, each in inside.items()}
    if not isinstance(block, Fused):
        block.__class__ = classes[type(block)]  # type: ignore[assignment]
    tail, norm, how = isinstance(by, Tail), by.takes_a_norm(block), by.how(block)
    return {name: replace(each, note=f"{each.note}, {how}", tail=tail, norm=norm) for name, each in inside.items()}


def _why_unknown(module: nn.Module, classes: Classes) -> str | None:
    """Why a module of a class that is not known is left; None for one that is no attention, or is ours."""
    cls = type(module)
    if isinstance(module, AttentionBlock):
        return None
    base = next((each for each in cls.__mro__ if each in classes), None)
    if base is not None and not isinstance(classes[base].fused_by, AROUND):
        own = " with a forward of its own" if cls.forward is not base.forward else ""
        return f"a subclass of {base.__name__}{own}, which has no adapter"
    if not _LOOKS_LIKE_A_GATE.search(cls.__name__) or cls.__module__.startswith("torch."):
        return None
    return None if _is_self_attention(module) else LEFT.get(cls.__name__, NO_ADAPTER)


def _is_self_attention(module: nn.Module) -> bool:
    """Whether this, by whatever name, is attention of tokens to one another, which gates nothing."""
    return any(path.rpartition(".")[2] == "qkv" or hasattr(each, "num_heads") for path, each in module.named_modules())


def _obstacle(module: nn.Module, fused: type[Fused]) -> str | None:
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if fused.fused_read not in (None, fingerprint(fused.fused_from, *fused.fused_helpers)):
        library = fused.fused_from.__module__.partition(".")[0]
        version = getattr(sys.modules.get(library), "__version__", "of an unknown version")
        return f"its forward is none that the adapter was written after ({library} {version})"
    return fused.fused_by.obstacle(module)


def unfuse(model: nn.Module) -> int:
    """Give every fused module its own class back, without a trace.

    Do so before saving a whole model (not its state dict) for where this package is not installed.

    Args:
        model: the network, fused or not.

    Returns:
        How many modules were fused.

    Raises:
        TypeError: a module's class was made of the fused one by another library (sharding does so); nothing is changed.
    """
    fused = [(path, module) for path, module in model.named_modules() if isinstance(module, Fused)]
    for path, module in fused:
        if "fused_by" not in type(module).__dict__:
            raise TypeError(f"{path} is a {type(module).__name__}, made of a fused class: unfuse before, not after")
    for _, module in fused:
        assert isinstance(module, Fused)
        module.__class__ = module.fused_from  # type: ignore[assignment]
    return len(fused)
