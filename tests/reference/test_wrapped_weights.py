"""Weights as people have them: inside of checkpoints, under prefixes, averaged; unwrapped, and said."""

from __future__ import annotations

import argparse
import logging

import pytest
import torch
from torch import Tensor, nn

from triton_attn.reference import SEBlock
from triton_attn.reference.weights import by_keys_of, load_weights


class Network(nn.Module):
    """A network with a site of every kind, small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 1)
        self.attention = nn.Sequential()
        self.attention.add_module("stem", SEBlock(16))
        self.layer1 = nn.Sequential(nn.BatchNorm2d(16))
        self.layer1.add_module("attention", SEBlock(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(self.attention(self.conv1(x)))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return Network().state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in state.items()}


LIGHTNING = {"epoch": 3, "global_step": 70, "pytorch-lightning_version": "2.5.0", "loops": {}, "hparams_name": "kwargs"}
WRAPPED = {
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3}, "'state_dict'"),
    "model": (lambda state: {"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1)}, "'model'"),
    "model_state_dict": (lambda state: {"model_state_dict": state, "loss": 0.5}, "'model_state_dict'"),
    "Lightning": (lambda state: {"state_dict": prefixed(state, "model."), **LIGHTNING}, "'model.'"),
    "averaged by timm": (lambda state: {"state_dict": other(state), "state_dict_ema": state}, "'state_dict_ema'"),
    "averaged by torchvision": (
        lambda state: {
            "model": other(state),
            "model_ema": {"n_averaged": torch.tensor(5), **prefixed(state, "module.")},
        },
        "'model_ema'",
    ),
    "AveragedModel": (lambda state: {"n_averaged": torch.tensor(5), **prefixed(state, "module.")}, "'module.'"),
    "module.": (lambda state: prefixed(state, "module."), "'module.'"),
    "_orig_mod.": (lambda state: prefixed(state, "_orig_mod."), "'_orig_mod.'"),
    "two": (lambda state: {"model": prefixed(state, "module._orig_mod.")}, "'module._orig_mod.'"),
    "another": (lambda state: prefixed(state, "net."), "'net.'"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_it_is_unwrapped_and_said(kind, state, tmp_path, caplog):
    wrap, said = WRAPPED[kind]
    torch.save(wrap(state), tmp_path / "file.pth")
    for weights in (wrap(state), tmp_path / "file.pth"):
        model = Network()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="triton_attn"):
            assert load_weights(model, weights, "resnet18") == []
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert said in caplog.text


def test_what_else_there_was_is_said(state, caplog):
    load_weights(Network(), {"model": other(state), "model_ema": state}, "resnet18")
    assert "taken from its 'model_ema' (there is 'model' as well" in caplog.text


def test_a_prefix_that_not_all_share_is_none(state):
    for stray in ("criterion.weight", "weight", "module"):
        with pytest.raises(ValueError, match=r"missing: conv1\.weight, .*not of this model: module\.conv1\.weight"):
            load_weights(Network(), prefixed(state, "module.") | {stray: torch.zeros(1)}, "resnet18")
    alone = {"conv1.weight": state["conv1.weight"]}
    assert by_keys_of(state, alone) == alone, "what the network has is no prefix"


def test_a_checkpoint_without_a_state_dict(tmp_path):
    for content in ({"model": 5}, {"state_dict": {"epoch": 3}}, {"epoch": 3, "weights": {}}):
        torch.save(content, tmp_path / "file.pth")
        for weights in (content, tmp_path / "file.pth"):
            with pytest.raises(ValueError, match=r"must be a state dict .* nor does it hold one"):
                load_weights(Network(), weights, "resnet18")


@pytest.mark.parametrize("block", ["attention.stem", "layer1.attention"])
def test_a_block_that_is_half_there_is_an_error(block, state):
    keys = [f"{block}.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    without = {key: value for key, value in state.items() if key not in keys}
    assert load_weights(Network(), without, "resnet18") == keys
    for lacking in (keys[:1], keys[1:]):
        partial = {key: value for key, value in state.items() if key not in lacking}
        with pytest.raises(
            ValueError, match=rf"missing of a block that is there: {', '.join(lacking)}$".replace(".", r"\.")
        ):
            load_weights(Network(), partial, "resnet18")


def test_other_code_in_a_checkpoint_is_refused(tmp_path):
    """A namespace of options is read, and nothing else is that has a class of its own."""
    torch.save({"model": {}, "args": logging.Formatter()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"cannot be read \(UnpicklingError"):
        load_weights(Network(), tmp_path / "file.pth", "resnet18")
