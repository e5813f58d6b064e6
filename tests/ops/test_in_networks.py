"""Every block in a network that trains, under the interpreter: ResNet-18 with attention in all of its blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn import reference

pytestmark = pytest.mark.interpreter


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Those of a training step, a layer's weight and bias as one vector: a scalar by itself may cancel to nothing."""
    nn.functional.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        layers.setdefault(name.rpartition(".")[0], []).append(parameter.grad.double().flatten())
    return {name: torch.cat(grads) for name, grads in layers.items()}


@pytest.mark.parametrize("name", triton_attn.list_attention())
def test_a_training_step(name: str) -> None:
    """The same gradients as with the plain twins. What rounding does to a single layer of a network is luck, so all of
    them together are held to the rule, and each by itself to what no error of a formula would pass."""
    torch.manual_seed(0)
    where = "layer3" if name == "nonlocal" else "block"
    fast = triton_attn.resnet18(name, where=where, num_classes=3)
    plain = reference.build_resnet("resnet18", name, where=where, num_classes=3)
    plain.load_state_dict(fast.state_dict())
    exact = copy.deepcopy(plain).double()
    images = torch.randn(2, 3, 33, 33)
    assert {entry.backend for entry in triton_attn.explain(fast, images)} == {"triton"}
    ours, theirs, right = gradients(fast, images), gradients(plain, images), gradients(exact, images.double())
    errors, plain_errors = [], []
    for layer, true in right.items():
        if layer.endswith("key_conv"):  # whose bias' gradient is zero, and rounding in the twin
            continue
        errors.append((ours[layer] - true).norm() / true.norm())
        plain_errors.append((theirs[layer] - true).norm() / true.norm())
        assert errors[-1] < 1e-4, layer
    assert torch.stack(errors).square().mean().sqrt() <= 2 * torch.stack(plain_errors).square().mean().sqrt() + 1e-6
