"""Every block in a network that trains, under the interpreter: half a ResNet-18 with attention in all of its blocks."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn import reference
from triton_attn.reference import resnet

pytestmark = pytest.mark.interpreter


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Those of a training step, a layer's weight and bias as one vector: a scalar by itself may cancel to nothing."""
    nn.functional.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        layers.setdefault(name.rpartition(".")[0], []).append(parameter.grad.double().flatten())
    return {name: torch.cat(grads) for name, grads in layers.items()}


def errors(name: str, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """How far the gradients of every layer are off, relative to their norms: ours, and the plain twins'."""
    torch.manual_seed(seed)
    where = "layer3" if name == "nonlocal" else "block"
    fast = triton_attn.resnet18(name, where=where, num_classes=3)
    plain = reference.build_resnet("resnet18", name, where=where, num_classes=3)
    plain.load_state_dict(fast.state_dict())
    images = torch.randn(2, 3, 33, 33)
    assert {entry.backend for entry in triton_attn.explain(fast, images)} == {"triton"}
    right = gradients(copy.deepcopy(plain).double(), images.double())
    ours, theirs = (
        {layer: ((found[layer] - true).norm() / true.norm()).item() for layer, true in right.items()}
        for found in (gradients(fast, images), gradients(plain, images))
    )
    return ours, theirs


@pytest.fixture(autouse=True)
def one_block_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All widths and strides are there; the other block of each layer would say the same again."""
    block, _ = resnet.ARCHITECTURES["resnet18"]
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", (block, (1, 1, 1, 1)))


@pytest.mark.parametrize("name", triton_attn.list_attention())
def test_a_training_step(name: str) -> None:
    """The same gradients as with the plain twins. What rounding does to a single layer of a network is luck, so all of
    them together are held to the rule, and each by itself to what no error of a formula would pass.

    Rounding may put a single value on the other side of a ReLU, which changes all gradients below: then another network
    is drawn. An error of a formula is in all of them.
    """
    for seed in (2, 1, 0):  # with the first, all do at once
        ours, plain = errors(name, seed)
        # Of keys the bias' gradient is zero, and rounding in the twin.
        off = {layer: error for layer, error in ours.items() if error >= 1e-4 and not layer.endswith("key_conv")}
        if not off:
            break
    assert not off
    total, plain_total = (
        math.hypot(*(each[layer] for layer in ours if not layer.endswith("key_conv"))) for each in (ours, plain)
    )
    assert total <= 2 * plain_total + 1e-6 * math.sqrt(len(ours))
