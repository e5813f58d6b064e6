"""insert and remove: attention behind any module, no key moved, and all that people do with their networks after."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import triton_attn
from triton_attn.registry import ALL

models = pytest.importorskip("torchvision").models

SITES = {"layer3": "nonlocal", "layer[12].*.bn2": "se"}
HOSTS = ["layer3.1", *(f"layer{stage}.{block}.bn2" for stage in (1, 2) for block in (0, 1))]


class Branches(nn.Module):
    """A network whose modules give what no attention can stand behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.flat = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.split, self.unused, self.parts = Split(), nn.ReLU(), nn.ModuleList([nn.ReLU()])
        self.empty, self.twice = nn.Sequential(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.parts[0](self.conv(self.twice(x))))
        return self.flat(self.pool(self.split(y)[0]))


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet18(num_classes=3).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def wake(model: nn.Module) -> None:
    """Have every parameter of inserted attention do something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attention." in name:
                parameter.add_(0.1)


def test_keys_and_numbers_stay() -> None:
    model = plain_network()
    before, expected = copy.deepcopy(model.state_dict()), model(images())
    done = triton_attn.insert(model, SITES)
    assert [each.site for each in done] == HOSTS
    assert [each.block for each in done] == ["NonLocalBlock", *["SEBlock"] * 4]
    assert [each.channels for each in done] == [256, 64, 64, 128, 128]
    after = model.state_dict()
    assert set(after) - set(before) == set(done.keys)
    assert done[1].keys == tuple(f"layer1.0.bn2.attention.fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(model(images()), expected)


def test_weights_load_before_and_after() -> None:
    first, second = plain_network(), models.resnet18(num_classes=3).eval()
    expected = first(images())
    done = triton_attn.insert(second, SITES)
    found = second.load_state_dict(first.state_dict(), strict=False)
    assert set(found.missing_keys) == set(done.keys)
    assert found.unexpected_keys == []
    assert torch.equal(second(images()), expected)
    wake(second)
    triton_attn.insert(first, SITES)
    first.load_state_dict(second.state_dict(), strict=True)
    assert torch.equal(first(images()), second(images()))


def test_the_blocks_are_behind_their_modules() -> None:
    model = plain_network()
    triton_attn.insert(model, SITES, identity=False)
    kept: dict[str, Tensor] = {}
    for host in HOSTS:
        module = model.get_submodule(host)
        module.attention.register_forward_hook(lambda _, __, y, host=host: kept.update({host: y}))
        module.register_forward_hook(lambda _, __, y, host=host: kept.update({f"{host} in all": y}))
    model(images())
    for host in HOSTS:
        assert kept[host] is kept[f"{host} in all"]


def test_removing_leaves_nothing() -> None:
    model = plain_network()
    state = {path: {**module.__dict__} for path, module in model.named_modules()}
    expected = model(images())
    triton_attn.insert(model, SITES, identity=False)
    assert not torch.equal(model(images()), expected)
    assert sorted(triton_attn.remove(model)) == sorted(HOSTS)
    assert {path: {**module.__dict__} for path, module in model.named_modules()} == state
    assert torch.equal(model(images()), expected)
    assert triton_attn.remove(model) == []


def test_other_hooks_stay() -> None:
    model, heard = plain_network(), []
    model.layer1[0].bn2.register_forward_hook(lambda *_: heard.append(1))
    triton_attn.insert(model, SITES)
    triton_attn.remove(model)
    heard.clear()
    model(images())
    assert heard == [1]


@pytest.mark.parametrize("name", [name for name in ALL if name != "published.grid_gate"])
def test_every_block_changes_nothing_at_first(name: str) -> None:
    model = plain_network()
    expected = model(images())
    (each,) = triton_attn.insert(model, {"layer2": name})
    assert (each.site, each.channels) == ("layer2.1", 128)
    assert torch.equal(model(images()), expected)
    triton_attn.remove(model)
    triton_attn.insert(model, {"layer2": name}, identity=False)
    assert model.layer2[1].attention.training is False


def test_a_callable() -> None:
    model = plain_network().double().train()
    expected = triton_attn.SEBlock(64, 4)
    triton_attn.insert(model, {"layer1": lambda channels: triton_attn.SEBlock(channels, 4)})
    block = model.layer1[1].attention
    assert isinstance(block, triton_attn.SEBlock)
    assert block.fc1.weight.shape == expected.fc1.weight.shape
    assert block.fc1.weight.dtype == torch.float64
    assert block.training


def test_blocks_are_like_their_hosts() -> None:
    model = plain_network().bfloat16().to("meta")
    model.layer1.eval()
    model.layer2.train()
    triton_attn.insert(model, {"layer1": "se", "layer2": "se"}, example=torch.empty(1, 3, 32, 32).bfloat16().to("meta"))
    for stage, training in ((model.layer1, False), (model.layer2, True)):
        block = stage[1].attention
        assert block.training is training
        assert {(p.dtype, p.device.type) for p in block.parameters()} == {(torch.bfloat16, "meta")}


def test_counting_channels_leaves_the_network_as_it_was() -> None:
    model = plain_network().train()
    model.layer2.eval()
    modes = {path: module.training for path, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    triton_attn.insert(model, {"layer4": "eca"}, example=images())
    assert {path: module.training for path, module in model.named_modules() if "attention" not in path} == modes
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1


def test_it_trains() -> None:
    model = plain_network().train()
    done = triton_attn.insert(model, SITES)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images()), torch.tensor([0, 2])).backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in done.keys if ".fc2." in key or ".value_conv." in key} <= moved
    assert any(".fc1." in key for key in moved)


# What is refused, with nothing changed.


@pytest.mark.parametrize(
    ("attention", "error", "says"),
    [
        ({"layer5": "se"}, ValueError, r"'layer5' is the path of no module of ResNet; did you mean layer\d or "),
        ({"layer1.*": "se", "zzzz.*": "se"}, ValueError, r"'zzzz\.\*' is the path of no module of ResNet$"),
        ({"layer1": "see"}, ValueError, r"unknown attention 'see'"),
        ({"layer1": 3}, TypeError, r"attention\['layer1'\] must be a name or a callable, got int"),
        ({"layer1": lambda _: 3}, TypeError, r"attention must make a torch.nn.Module, got int"),
        ({"layer1": "se", "layer1.1": "eca"}, ValueError, r"'layer1.1' and 'layer1' are both to stand behind layer1.1"),
        (
            {"layer1.0.conv1": "se"},
            ValueError,
            r"layer1.0.conv1 is a convolution whose batch norm is layer1.0.bn1: .*take",
        ),
        ({"conv1": "se"}, ValueError, r"conv1 is a convolution whose batch norm is bn1"),
        ({"fc": "se"}, ValueError, r"what comes out of fc is no map \(N, C, H, W\), but of shape \(2, 3\)"),
    ],
)
def test_refused(attention: dict, error: type[Exception], says: str) -> None:
    model = plain_network()
    keys = list(model.state_dict())
    with pytest.raises(error, match=says):
        triton_attn.insert(model, {"layer2": "eca", **attention})
    assert list(model.state_dict()) == keys
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("split", r"what comes out of split is no map \(N, C, H, W\), but a tuple"),
        ("flat", r"what comes out of flat is no map \(N, C, H, W\), but of shape \(2, 8\)"),
        ("unused", r"unused is not called by the network's forward"),
        ("parts", r"parts is a ModuleList, which is not called"),
        ("empty", r"empty is an empty Sequential"),
        ("twice", r"twice is called more than once, with 3 and 8 channels"),
    ],
)
def test_refused_for_what_comes_out(site: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        triton_attn.insert(Branches(), {site: "eca"})


def test_refused_twice() -> None:
    model = plain_network()
    triton_attn.insert(model, {"layer1": "se"})
    with pytest.raises(ValueError, match=r"layer1.1 has a child or an attribute named 'attention' already; remove"):
        triton_attn.insert(model, {"layer1.*": "eca"})
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        triton_attn.insert("resnet18", {"layer1": "se"})


def test_an_example_is_asked_for() -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)

    with pytest.raises(ValueError, match="Vectors has no convolution that says what an image is: give one"):
        triton_attn.insert(Vectors(), {"act": "eca"})
    (each,) = triton_attn.insert(Vectors(), {"act": "eca"}, example=torch.randn(1, 5, 2, 2))
    assert each.channels == 5

    class Two(Vectors):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.act(x + self.conv(y))

    model = Two()
    model.conv = nn.Conv2d(3, 5, 1)
    with pytest.raises(ValueError, match=r"how many channels come out of act is not known, .*give an input"):
        triton_attn.insert(model, {"act": "eca"})
    (each,) = triton_attn.insert(model, {"act": "eca"}, example=(torch.randn(1, 5, 2, 2), torch.randn(1, 3, 2, 2)))
    assert each.channels == 5


def test_it_prints_as_a_table() -> None:
    lines = str(triton_attn.insert(plain_network(), SITES)).splitlines()
    assert lines[0].split() == ["behind", "block", "channels", "keys"]
    assert lines[1].split() == ["layer3.1", "NonLocalBlock", "256", "layer3.1.attention.*"]


# What people do with their networks.


@pytest.fixture
def pair() -> tuple[nn.Module, Tensor]:
    """A network with attention that does something, and what it makes of the images."""
    model = plain_network()
    triton_attn.insert(model, SITES)
    wake(model)
    return model, model(images()).detach()


def test_deepcopy(pair) -> None:
    model, expected = pair
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images()), expected)
    with torch.no_grad():
        copied.layer1[0].bn2.attention.fc2.bias.add_(1)
    assert torch.equal(model(images()), expected)
    assert not torch.equal(copied(images()), expected)


def test_a_whole_model_is_saved(pair) -> None:
    model, expected = pair
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(images()), expected)
    assert sorted(triton_attn.remove(loaded)) == sorted(HOSTS)


def test_our_own_resnets() -> None:
    """Their blocks have attention inside, at a site of their own; behind other modules it stands as anywhere."""
    model, x = triton_attn.resnet18("eca", where="block", num_classes=3).eval(), images()
    expected = model(x)
    for site in ("layer1.0", "layer3"):
        with pytest.raises(ValueError, match=r"a block of a network of ours.*attention= and where="):
            triton_attn.insert(model, {site: "se"})
    done = triton_attn.insert(model, {"layer[12].*.bn2": "se", "maxpool": "eca"})
    assert [each.channels for each in done] == [64, 64, 128, 128, 64]
    assert torch.equal(model(x), expected)
    assert len(triton_attn.remove(model)) == 5


def test_compiled() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1))
    triton_attn.insert(model, {"1": "nonlocal", "2": "se"}, identity=False)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()))
    compiled(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_traced(pair) -> None:
    model, expected = pair
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(images()), expected)
    torch.testing.assert_close(torch.jit.trace(model, images())(images()), expected)
    torch.testing.assert_close(torch.export.export(model, (images(),)).module()(images()), expected)


def test_checkpointed(pair) -> None:
    model, expected = pair
    y = torch.utils.checkpoint.checkpoint(model, images(), use_reentrant=False)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert model.layer1[0].bn2.attention.fc1.weight.grad is not None


@pytest.mark.usefixtures("alone")
def test_in_parallel(pair) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, expected = pair
    parallel = nn.parallel.DistributedDataParallel(model)
    assert torch.equal(parallel(images()), expected)
    sharded = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (1,))
    for part in (sharded.layer1[0].bn2, sharded.layer3[1], sharded):
        fully_shard(part, mesh=mesh)
    y = sharded(images())
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert sharded.layer1[0].bn2.attention.fc1.weight.grad is not None


def test_explain_sees_it(pair) -> None:
    model, _ = pair
    assert {each.name for each in triton_attn.explain(model, images())} == {f"{host}.attention" for host in HOSTS}


@pytest.mark.interpreter
def test_kernels_serve_it() -> None:
    model = plain_network()
    triton_attn.insert(model, SITES, identity=False)
    assert {each.backend for each in triton_attn.explain(model, images())} == {"triton"}
    ours = model(images())
    with triton_attn.use_backend("reference"):
        torch.testing.assert_close(ours, model(images()), atol=1e-4, rtol=1e-4)
