"""Inner layers that somebody changed are called, so that the change counts: plain, and behind kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import triton_attn
from triton_attn import reference
from triton_attn.reference.identity import ZeroLayer
from triton_attn.reference.registry import ALL as PLAIN
from triton_attn.registry import ALL, BLOCKS

interpreter = pytest.mark.interpreter
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, ZeroLayer)
# Published blocks whose kernels have a layer's weights inside; the others call their layers on every path.
READS_WEIGHTS = ["danet", "eca", "global_context", "position", "scse", "se"]


def make(kinds: dict[str, type[nn.Module]], name: str, identity: bool = False) -> nn.Module:
    """A block with weights of some size, none of which is zero."""
    block = kinds[name](32, identity=identity)
    generator = torch.Generator().manual_seed(3)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return block.eval()


def layers_of(name: str) -> list[str]:
    return [path for path, module in make(PLAIN, name).named_modules() if isinstance(module, LAYERS)]


def draw() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 32, 4, 3, generator=generator), torch.randn(2, 32, 4, 3, generator=generator)


def double(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda _, __, y: 2 * y)


def doubled(block: nn.Module, path: str) -> nn.Module:
    """The block with the weights of a layer that gives twice as much."""
    twin = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in twin.get_submodule(path).parameters():
            parameter.mul_(2)
    return twin


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_every_layer_of_every_block_is_called(name):
    x, shortcut = draw()
    for path in layers_of(name):
        block = make(PLAIN, name)
        expected = doubled(block, path)(x, shortcut=shortcut)
        unchanged = block(x, shortcut=shortcut)
        double(block.get_submodule(path))
        assert_same(block(x, shortcut=shortcut), expected)
        told = not torch.allclose(expected, unchanged, rtol=1e-3, atol=1e-3)
        # What a layer norm behind it takes out again cannot be seen.
        assert told or (name, path) == ("published.global_context", "fc1"), path


@interpreter
@pytest.mark.parametrize("name", [*BLOCKS, *(f"published.{name}" for name in READS_WEIGHTS)])
def test_every_layer_is_called_behind_the_kernels(name):
    x, shortcut = draw()
    for path in layers_of(name):
        if name == "published.danet" and not path.startswith("position."):
            continue
        fast = make(ALL, name)
        expected = doubled(fast, path)
        double(fast.get_submodule(path))
        if path != layers_of(name)[-1]:  # the gradients go the same way, whichever layer was changed
            with torch.no_grad():
                assert_same(fast(x, shortcut=shortcut), plainly(expected, x, shortcut))
            continue
        y, (dx, *grads) = gradients(fast, x, shortcut)
        with triton_attn.use_backend("reference"):
            right, (right_dx, *right_grads) = gradients(expected, x, shortcut)
        assert_same(y, right)
        assert_same(dx, right_dx)
        for (key, _), one, other in zip(fast.named_parameters(), grads, right_grads, strict=True):
            assert_same(one, other * 2 if key.rpartition(".")[0] == path else other)


def plainly(block: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
    with triton_attn.use_backend("reference"):
        return block(x, shortcut=shortcut)


def gradients(block: nn.Module, x: Tensor, shortcut: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    y = block(x, shortcut=shortcut)
    return y.detach(), list(torch.autograd.grad(y.square().mean(), [x, *block.parameters()]))


@interpreter
def test_kernels_serve_around_layers_that_are_called():
    x, shortcut = draw()
    for name in BLOCKS:
        block = make(ALL, name)
        double(block.get_submodule(layers_of(name)[-1]))
        with triton_attn.use_backend("triton"), torch.no_grad():  # or an error
            block(x, shortcut)


# One layer, changed in all the ways that people have.


class Lora(nn.Module):
    """A layer and a product of low rank beside it, as libraries put it in the layer's place."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_class(layer: nn.Module) -> None:
    layer.__class__ = Doubled


def with_forward(layer: nn.Module) -> None:
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "hook": double,
    "pre-hook": lambda layer: layer.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],)),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": lambda layer: nn.init.ones_(parametrizations.weight_norm(layer).parametrizations.weight.original0),
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": lambda layer: nn.init.ones_(nn.utils.weight_norm(layer).weight_g),
    "forward": with_forward,
    "class": with_class,
}


def changed(kinds: dict[str, type[nn.Module]], change: str) -> tuple[nn.Module, Tensor]:
    """An SE block whose first layer was changed, and its output by what that layer gives when it is called."""
    torch.manual_seed(0)
    block, (x, _) = make(kinds, "se"), draw()
    if change == "lora":
        block.fc1 = Lora(block.fc1)
    elif change == "quantised":
        block.fc1 = torch.ao.quantization.quantize_dynamic(nn.Sequential(block.fc1), {nn.Linear})[0]
    elif change == "wider":
        block.fc1, block.fc2 = nn.Linear(32, 7), nn.Linear(7, 32)
    else:
        CHANGES[change](block.fc1)
    gate = torch.sigmoid(block.fc2(torch.relu(block.fc1(x.mean((2, 3))))))
    return block, x * gate[:, :, None, None]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [*CHANGES, "lora", "quantised", "wider"])
def test_a_change_counts(change):
    plain = make(PLAIN, "se")(draw()[0])
    for kinds in (PLAIN, ALL):
        block, expected = changed(kinds, change)
        assert torch.equal(block(draw()[0]), expected)
        assert (expected - plain).abs().max() > 1e-3, "it would not be noticed"
        assert_same(draw()[0] * block.attention_maps(draw()[0])["channel"], expected)


@interpreter
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [*CHANGES, "lora", "quantised", "wider"])
def test_a_change_counts_behind_the_kernels(change):
    block, expected = changed(ALL, change)
    x, _ = draw()
    for _ in range(2):  # and where a plan is played
        with triton_attn.use_backend("triton"):
            assert_same(block(x), expected)


@interpreter
def test_a_change_counts_behind_a_plan():
    block, (x, _) = make(ALL, "se"), draw()
    before = block(x)
    assert torch.equal(block(x), before)  # by a plan
    double(block.fc2)
    assert not torch.allclose(block(x), before)


@interpreter
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cbam", "channel_attention"),
        ("dual", "channel_attention"),
        ("dual", "spatial_attention"),
        ("dual", "spatial_attention.channel_attention"),
        ("published.danet", "position"),
    ],
)
def test_hooks_on_blocks_within_blocks(name, path):
    x, shortcut = draw()
    fast, plain = make(ALL, name), make(PLAIN, name)
    for block in (fast, plain):
        double(block.get_submodule(path))
    assert_same(fast(x, shortcut=shortcut), plain(x, shortcut=shortcut))


@interpreter
def test_other_layers_and_blocks_in_their_place():
    x, shortcut = draw()
    for name in ("cbam", "dual"):
        results = []
        for kinds in (ALL, PLAIN):
            block = make(kinds, name)
            cbam = block if name == "cbam" else block.spatial_attention
            torch.manual_seed(0)
            cbam.spatial_attention = nn.Conv2d(2, 1, 3, padding=1)
            block.channel_attention = reference.ECABlock(32)
            results.append(block(x, shortcut))
        assert_same(*results)
    gate, unbiased = make(ALL, "gate"), nn.Conv2d(16, 1, 1, bias=False)
    gate.psi = unbiased
    with triton_attn.use_backend("reference"):
        expected = gate(x)
    assert_same(gate(x), expected)
    eca = make(ALL, "eca")
    eca.conv = nn.Conv1d(1, 1, 3, padding=1)
    assert_same(eca(x), x * torch.sigmoid(eca.conv(x.mean((2, 3))[:, None]))[:, 0, :, None, None])


@interpreter
def test_hooks_on_all_modules_are_called():
    x, _ = draw()
    for name in ("se", "cbam", "nonlocal"):
        seen: list[nn.Module] = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, _, __, seen=seen: seen.append(module))
        block = make(ALL, name)
        try:
            block(x)
        finally:
            handle.remove()
        assert all(block.get_submodule(path) in seen for path in layers_of(name)), name


@interpreter
def test_a_changed_layer_is_called_in_a_compiled_network():
    x, _ = draw()
    for name in ("se", "cbam"):
        block = make(ALL, name)
        double(block.get_submodule(layers_of(name)[0]))
        with torch.no_grad():
            assert_same(torch.compile(block, fullgraph=True, backend="eager")(x), block(x))


def test_asking_for_a_parametrised_weight_is_left_to_the_layer():
    """Spectral norm makes a step at each look at the weight: one in a call, as anywhere."""
    torch.manual_seed(0)
    block = make(ALL, "se").train()
    alone = copy.deepcopy(block.fc1)
    for layer in (block.fc1, alone):
        torch.manual_seed(1)
        parametrizations.spectral_norm(layer)
    x, _ = draw()
    block(x)
    alone(x.mean((2, 3)))
    assert torch.equal(block.fc1.parametrizations.weight[0]._u, alone.parametrizations.weight[0]._u)
