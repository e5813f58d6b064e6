"""From a configuration to a network that is ready to train."""

from __future__ import annotations

import difflib
import inspect

from torch import nn

from ..fusion import fuse
from ..reference.resnet import ResNet
from ..reference.weights import by_keys_of, load_weights, read_weights
from ..registry import ALL
from . import foreign
from .checkpoint import Card
from .config import Config
from .data import Images
from .errors import UserError, as_user_error
from .tensors import check_values
from .transforms import normalisation

NOT_GIVEN = ("channels", "in_channels", "device", "dtype")
"""Arguments of blocks that the network decides on."""


def make_card(config: Config, images: Images) -> Card:
    """The card of the checkpoints that this run will write."""
    assert config.image_size is not None  # the configuration is resolved
    assert config.eval_image_size is not None
    mean, std = normalisation(images.kind, config.in_channels)
    return Card(
        model=config.model,
        attention=config.attention,
        where=config.where,
        attention_kwargs=config.attention_kwargs,
        num_classes=len(images.classes),
        classes=images.classes,
        image_size=config.image_size,
        mean=mean,
        std=std,
        eval_image_size=config.eval_image_size,
        crop_fraction=config.crop_fraction,
    )


def build_network(card: Card, weights: str | None = None) -> tuple[nn.Module, str | None]:
    """The network of a card, with fresh weights or those that ``--weights`` names.

    Weights for another number of classes keep everything but the last layer, which starts fresh; those for RGB images
    are fitted to other channels.

    Returns:
        The network, and a sentence about the last layer if it was replaced.

    Raises:
        UserError: an unknown model, block or site (with the nearest known one), or weights that do not fit or are not
            finite.
    """
    check_arguments(card)
    with as_user_error(ValueError, TypeError):
        model = card.build()
    if weights is None:
        return model, None
    with as_user_error(ValueError, TypeError, FileNotFoundError, RuntimeError, prefix=f"--weights {weights}: "):
        if not isinstance(model, ResNet):
            note = foreign.load(model, weights)
            return model, note and f"--weights {weights}: {note}"
        state = by_keys_of(model.state_dict(), read_weights(weights, card.model))
        rows = len(state["fc.weight"]) if "fc.weight" in state else card.num_classes
        state = foreign.fit_channels(state, "conv1.weight", model.state_dict())
        fresh = model.fc
        if rows != card.num_classes:
            model.fc = nn.Linear(fresh.in_features, rows)
        check_values(state, model.state_dict())
        load_weights(model, state, card.model)
    if rows == card.num_classes:
        return model, None
    model.fc = fresh
    return model, (
        f"--weights {weights}: they are for {rows} classes and the data have {card.num_classes}, so the last layer "
        "starts fresh"
    )


def check_arguments(card: Card) -> None:
    """Raise a UserError for an argument that a block of the network does not have."""
    if card.attention is None:
        return
    names = (card.attention,) if isinstance(card.attention, str) else card.attention.values()
    for block in (name for name in names if name in ALL):
        known = [name for name in inspect.signature(ALL[block]).parameters if name not in NOT_GIVEN]
        for key in (key for key in card.attention_kwargs if key not in known):
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"--attention-kwargs: {block} has no argument {key!r}{hint} (it has {', '.join(known) or 'none'})"
            )


def serve(model: nn.Module) -> str:
    """Have our kernels serve the attention that a network of timm has of its own, in place; returns what they serve."""
    return f"of its own attention: {fuse(model).totals()}"
