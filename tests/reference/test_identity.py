"""identity=True: a block that changes nothing at first, bit by bit, whatever its host does, and learns at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from triton_attn.reference.identity import ZeroBatchNorm2d, ZeroLayer
from triton_attn.reference.registry import BLOCKS, PUBLISHED

ALL = BLOCKS | PUBLISHED
NAMES = sorted(ALL)
# What a gate multiplies and what is added to the map alike.
OPTIONS = [
    *((name, {}) for name in NAMES),
    ("se", {"gate": "hard_sigmoid", "hidden_activation": "hardswish"}),
    ("se", {"gate": "none", "bias": False}),
    ("se", {"one_layer": True, "pool": "half"}),
    ("published.cbam", {"bias": False}),
    ("published.nonlocal", {"norm": False, "mode": "gaussian"}),
]

# Biases that a softmax or a batch norm behind them takes out again have no gradient, whatever the block is at first.
IDLE = {
    "nonlocal": {"key_conv.bias"},
    "published.coordinate": {"conv1.bias"},
    "published.danet": {"position.key_conv.bias", "position.value_conv.bias"},
    "published.gate": {"x_conv.bias", "g_conv.bias", "psi.bias"},
    "published.global_context": {"conv.bias"},
    "published.grid_gate": {"W.bias"},
    "published.nonlocal": {"phi.bias", "g.bias", "out.bias"},
    "published.position": {"key_conv.bias"},
}
ONE_LAYER = {"eca", "published.channel", "published.eca", "published.pixel", "published.simam"}


def make(name: str, dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return ALL[name](32, **options, identity=True, dtype=dtype)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_nothing_changes_at_first(name, options, dtype, training):
    block, x = make(name, dtype, **options).train(training), draw(2, 32, 5, 6).to(dtype)
    shortcut = draw(2, 32, 5, 6, seed=2).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        assert torch.equal(block(given), x)
        assert torch.equal(block(given, shortcut=shortcut), torch.relu(x + shortcut))


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_the_gradient_is_the_identitys_too(name, options):
    block, x, grad = make(name, **options), draw(2, 32, 5, 6).requires_grad_(), draw(2, 32, 5, 6, seed=2)
    (dx,) = torch.autograd.grad(block(x), x, grad)
    assert torch.equal(dx, grad)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing_either(name):
    block, x = make(name), draw(2, 32, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block(x), x)
        assert torch.equal(block(x.bfloat16()), x.bfloat16())


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_it_learns_from_the_first_step(name, options):
    block, x, target = make(name, **options), draw(4, 32, 5, 6), draw(4, 32, 5, 6, seed=2)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.01)
    moved = set()
    before = {key: value.clone() for key, value in block.named_parameters()}
    losses = []
    for step in range(4):
        loss = (block(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved |= {key for key, value in block.named_parameters() if not torch.equal(value, before[key])}
        if step == 0:
            assert moved, "nothing has a gradient"
            assert not torch.equal(block(x), x)
    assert losses[-1] < losses[0]
    assert set(before) - moved <= IDLE.get(name, set()), "these never learn"


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_is_added(name):
    block, plain = make(name), ALL[name](32)
    if name == "published.simam":  # whose gate depends on no parameter
        assert [*block.state_dict()] == ["gamma"]
        assert not plain.state_dict()
        return
    assert {key: value.shape for key, value in block.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert block.identity
    assert not plain.identity
    assert "identity=True" in repr(block)
    assert "identity" not in repr(plain)


def by_type(module: nn.Module) -> None:
    """As networks do it."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.normal_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
        nn.init.ones_(module.weight)
        nn.init.normal_(module.bias)


def by_reset(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


@pytest.mark.parametrize("walk", [by_type, by_reset])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_a_hosts_initialisation_does_not_undo_it(name, options, walk):
    block, x = make(name, **options), draw(2, 32, 5, 6)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    with torch.no_grad():
        nn.Sequential(block).apply(walk)
    if name not in ONE_LAYER and not options.get("one_layer"):
        assert any(not torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_parameters_made_later(name, options):
    """On a GPU's worth of memory less: made on the meta device, given memory, and then reset by a walk."""
    block = ALL[name](32, **options, identity=True, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for value in block.state_dict().values():
            value.fill_(3)
        block.apply(by_reset)
    x = draw(2, 32, 5, 6)
    assert torch.equal(block(x), x)


def test_a_zero_layer_is_what_it_stands_for():
    for layer, shape in (
        (nn.Linear(4, 3), (2, 4)),
        (nn.Conv1d(4, 3, 5, padding=2), (2, 4, 6)),
        (nn.Conv2d(4, 3, 7, padding=3), (2, 4, 6, 5)),
    ):
        zero = ZeroLayer(tuple(layer.weight.shape))
        assert not isinstance(zero, type(layer))
        assert not zero(draw(*shape)).any()
        zero.load_state_dict(layer.state_dict())
        assert torch.equal(zero(draw(*shape)), layer(draw(*shape)))
    assert repr(ZeroLayer((3, 4), None)) == "ZeroLayer((3, 4), bias=False)"
    assert ZeroLayer((3, 4), None).bias is None
    assert ZeroLayer((3, 4), 0.5).bias.eq(0.5).all()


def test_a_zero_batch_norm_is_one_for_who_converts_them():
    zero, norm, x = ZeroBatchNorm2d(3), nn.BatchNorm2d(3), draw(2, 3, 4, 5)
    assert not isinstance(zero, nn.BatchNorm2d)
    assert isinstance(zero, _BatchNorm)
    assert not zero(x).any()
    zero.load_state_dict(norm.state_dict())
    assert torch.equal(zero(x), norm(x))
    assert torch.equal(zero.running_var, norm.running_var)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(zero), nn.SyncBatchNorm)
    with pytest.raises(ValueError, match=r"input must be 4-D, \(N, 3, H, W\), got shape \(2, 3, 4\)"):
        zero(x[..., 0])
