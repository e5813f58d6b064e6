"""Every block of both families in a trained network, which it leaves as it was; and then it trains."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn.reference import build_resnet


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@functools.cache
def trained(name: str, num_classes: int) -> nn.Module:
    """A plain network whose statistics have moved; each of them is made once, and left as it is."""
    torch.manual_seed(0)
    model = build_resnet(name, num_classes=num_classes)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 32, 32))
    return model


@pytest.mark.parametrize("name", triton_attn.list_attention("all"))
def test_logits_are_the_plain_networks_at_first(name):
    plain, x = trained("resnet18", 5), images(2, 3, 40, 33)
    options = {"identity": True}
    model = triton_attn.resnet18(
        {"block": name, "stem": name}, attention_kwargs=options, weights=plain.state_dict(), num_classes=5
    )
    assert sum(type(module).__name__ == type(model.layer1[0].attention).__name__ for module in model.modules()) >= 9
    plain = copy.deepcopy(plain)
    for training in (False, True):
        with torch.no_grad():
            assert torch.equal(model.train(training)(x), plain.train(training)(x))


@pytest.mark.parametrize(("name", "where"), [("published.cbam", "block"), ("published.nonlocal", "paper")])
def test_a_resnet50_with_torchvisions_weights_trains_from_its_logits(name, where):
    plain, x = trained("resnet50", 1000), images(4, 3, 32, 32)
    state = {key: value.clone() for key, value in plain.state_dict().items()}  # as IMAGENET1K_V2 has them
    model = triton_attn.resnet50(name, where=where, attention_kwargs={"identity": True}, weights=state)
    with torch.no_grad():
        expected = plain.eval()(x)
        assert torch.equal(model.eval()(x), expected)
    model.train()
    attention = {key: p.clone() for key, p in model.named_parameters() if "attention" in key.split(".")}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    labels, losses = torch.tensor([1, 2, 3, 4]), []
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    blocks = {key.partition(".attention.")[0] for key in attention}
    moved = {
        key.partition(".attention.")[0]
        for key, p in model.named_parameters()
        if key in attention and not torch.equal(p, attention[key])
    }
    assert len(blocks) == (16 if where == "block" else 5)
    assert moved == blocks, "a block whose parameters did not move"
    assert not torch.equal(model.eval()(x), expected)


def test_a_checkpoint_passes_between_fast_and_plain():
    torch.manual_seed(0)
    fast = triton_attn.resnet18("published.coordinate", where=("block", "paper"), num_classes=3).eval()
    plain = build_resnet("resnet18", "published.coordinate", where=("block", "paper"), num_classes=3).eval()
    plain.load_state_dict(fast.state_dict(), strict=True)
    assert type(fast.layer1[0].attention) is triton_attn.published.CoordinateAttention
    assert type(plain.layer1[0].attention) is triton_attn.reference.published.CoordinateAttention
    with torch.no_grad():
        assert torch.equal(fast(images(2, 3, 32, 32)), plain(images(2, 3, 32, 32)))
