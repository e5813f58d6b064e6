"""From a configuration to a network that is ready to train."""

from __future__ import annotations

from torch import nn

from ..reference.resnet import ResNet
from ..reference.weights import load_weights, read_weights
from . import foreign
from .checkpoint import Card
from .config import Config
from .data import Images
from .errors import as_user_error
from .tensors import check_values


def make_card(config: Config, images: Images) -> Card:
    """The card of the checkpoints that this run will write."""
    assert config.image_size is not None  # the configuration is resolved
    return Card(
        model=config.model,
        attention=config.attention,
        where=config.where,
        attention_kwargs=config.attention_kwargs,
        num_classes=len(images.classes),
        classes=images.classes,
        image_size=config.image_size,
        mean=images.mean,
        std=images.std,
    )


def build_network(card: Card, weights: str | None = None) -> tuple[nn.Module, str | None]:
    """The network of a card, with fresh weights or those that ``--weights`` names.

    Weights for another number of classes keep everything but the last layer, which starts fresh.

    Returns:
        The network, and a sentence about the last layer if it was replaced.

    Raises:
        UserError: an unknown model, block or site (with the nearest known one), or weights that do not fit or are not
            finite.
    """
    with as_user_error(ValueError, TypeError):
        model = card.build()
    if weights is None:
        return model, None
    with as_user_error(ValueError, TypeError, FileNotFoundError, RuntimeError, prefix=f"--weights {weights}: "):
        if not isinstance(model, ResNet):
            note = foreign.load(model, weights)
            return model, note and f"--weights {weights}: {note}"
        state = read_weights(weights, card.model)
        rows = len(state["fc.weight"]) if "fc.weight" in state else card.num_classes
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
