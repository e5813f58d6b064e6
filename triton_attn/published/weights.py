"""Official weights in and out of the published blocks, with every key accounted for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..reference.activations import ONE_AT_ZERO
from ..reference.channel_gate import check_choice
from .layouts import LAYOUTS, OTHER_FORMULA, Layout


def layouts(block: nn.Module) -> list[str]:
    """The libraries whose weights :func:`load` takes for this block, and :func:`export` makes."""
    return [layout.name for layout in _layouts_of(block)]


def load(block: nn.Module, state: Mapping[str, Tensor], layout: str | None = None, *, prefix: str = "") -> str:
    """Load the weights that another library has for a block.

    The options are the caller's affair: activations, and for non-local attention its scale, leave no trace in weights.
    Where it is known that the library computes another formula than the block as it was built, that is an error.

    Args:
        block: a block of ``triton_attn.published``, or its plain twin.
        state: a state dict in the library's own names and shapes.
        layout: the library, one of :func:`layouts`; None finds it by the names.
        prefix: where the block lies in the network whose state this is (``"layer1.0.cbam."``); other keys are left.

    Returns:
        The layout.

    Raises:
        TypeError: a block that no layout is known for.
        ValueError: keys too many, too few or of another shape (the error names them), or another formula.
    """
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    known = _layouts_of(block)
    if layout is not None:
        check_choice("layout", layout, tuple(each.name for each in known))
        known = [each for each in known if each.name == layout]
    problems = {each: _problems(each, block, state) for each in known}
    # Of two that have the same names, the one that computes what the block does.
    nearest = min(known, key=lambda each: (sum(map(len, problems[each].values())), each.obstacle(block) is not None))
    if any(problems[nearest].values()):
        raise ValueError(
            f"the weights are not those of a {type(block).__name__} in the layout {nearest.name!r}, the nearest of "
            f"{', '.join(each.name for each in known)}. "
            + ". ".join(f"{what}: {', '.join(keys)}" for what, keys in problems[nearest].items() if keys)
        )
    _check_formula(nearest, block)
    block.load_state_dict(nearest.ours(block, state))
    return nearest.name


def export(block: nn.Module, layout: str) -> dict[str, Tensor]:
    """A block's weights as another library has them: a state dict with its names and shapes, in memory of its own.

    Args:
        block: a block of ``triton_attn.published``, or its plain twin.
        layout: the library, one of :func:`layouts`.

    Raises:
        TypeError: a block that no layout is known for.
        ValueError: an unknown layout, or one that computes another formula than this block.
    """
    known = {each.name: each for each in _layouts_of(block)}
    check_choice("layout", layout, tuple(known))
    _check_formula(known[layout], block)
    return known[layout].theirs(block)


def _layouts_of(block: nn.Module) -> list[Layout]:
    found = [layout for layout in LAYOUTS if isinstance(block, layout.block)]
    if not found:
        raise TypeError(f"there is no layout of official weights for a {type(block).__name__}")
    return found


def _problems(layout: Layout, block: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    shapes, extras = layout.shapes(block), layout.extras(block)
    if any(key in state for key in extras):
        shapes |= extras
    return {
        # Older files have no such counters; PyTorch's strict loading lets them lack too.
        "missing": [key for key in shapes if key not in state and not key.endswith(".num_batches_tracked")],
        "not of this block": [key for key in state if key not in shapes],
        "of another shape": [
            f"{key} {tuple(value.shape)}, expected {shapes[key]}"
            for key, value in state.items()
            if key in shapes and tuple(value.shape) != shapes[key]
        ],
    }


def _check_formula(layout: Layout, block: nn.Module) -> None:
    obstacle = layout.obstacle(block)
    doubled = getattr(block, "activation", None) in ONE_AT_ZERO.values()
    if doubled or (isinstance(block, OTHER_FORMULA) and block.identity):
        obstacle = "with identity=True the block computes another formula; its own weights load by load_state_dict"
    if obstacle is not None:
        raise ValueError(f"the layout {layout.name!r} is not this {type(block).__name__}'s: {obstacle}")
