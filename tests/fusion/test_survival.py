"""What people do with their networks, done to fused ones of timm and torchvision."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from timm.models import load_checkpoint
from timm.models._features_fx import FeatureGraphNet
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import create_feature_extractor

import triton_attn
from tests.fusion.networks import SMALL
from triton_attn import fusion
from triton_attn.explain import outermost

NAMES = ("timm se, bottlenecks", "timm efficientnet", "torchvision mobilenet")

pytestmark = pytest.mark.parametrize("name", NAMES)


def both(name: str) -> tuple[nn.Module, nn.Module]:
    """A network in evaluation, and a fused copy."""
    plain = SMALL[name]().eval()
    return plain, fuse(copy.deepcopy(plain))


def fuse(model: nn.Module) -> nn.Module:
    report = triton_attn.fuse(model)
    assert report
    assert not report.left
    return model


def is_fused(model: nn.Module) -> bool:
    return any(isinstance(module, fusion.Fused) for module in model.modules())


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of dropout
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert ours.keys() == plain.keys()
    for key in ours:
        assert torch.equal(ours[key], plain[key]), key


def test_deepcopy(name: str) -> None:
    plain, fused = both(name)
    copied = copy.deepcopy(fused)
    assert [type(module) for module in copied.modules()] == [type(module) for module in fused.modules()]
    x = images()
    assert torch.equal(copied(x), plain(x))


def test_state_dicts_go_both_ways(name: str) -> None:
    plain, fused = SMALL[name]().eval(), fuse(SMALL[name]()).eval()
    fused.load_state_dict(plain.state_dict(), strict=True)
    x = images()
    assert torch.equal(fused(x), plain(x))
    other = SMALL[name]().eval()
    other.load_state_dict(fused.state_dict(), strict=True)
    assert torch.equal(other(x), plain(x))


def test_timm_loads_checkpoints_into_it(name: str, tmp_path: Path) -> None:
    plain, fused = SMALL[name]().eval(), fuse(SMALL[name]()).eval()
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "checkpoint.pth")
    load_checkpoint(fused, str(tmp_path / "checkpoint.pth"), strict=True)
    x = images()
    assert torch.equal(fused(x), plain(x))


def test_timm_averages_its_weights(name: str) -> None:
    plain, fused = both(name)
    averages = [ModelEmaV3(each, decay=0.5) for each in (plain, fused)]
    assert is_fused(averages[1].module)
    for model, average in zip((plain, fused), averages, strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        average.update(model)
    assert_same(averages[1].module.state_dict(), averages[0].module.state_dict())


def test_an_optimizer_that_was_there_before(name: str) -> None:
    plain, fused = SMALL[name](), SMALL[name]()
    fused.load_state_dict(plain.state_dict())
    optimizers = [torch.optim.AdamW(each.parameters()) for each in (plain, fused)]
    fuse(fused)
    x = images()
    for model, optimizer in zip((plain, fused), optimizers, strict=True):
        for _ in range(2):
            step(model, x)
            optimizer.step()
    assert_same(fused.state_dict(), plain.state_dict())


def test_freezing(name: str) -> None:
    plain, fused = both(name)
    for model in (plain, fused):
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("se" in key or "block" not in key)
    x = images().requires_grad_()
    grads = [
        torch.autograd.grad(model(x).sum(), [x, *(p for p in model.parameters() if p.requires_grad)])
        for model in (plain, fused)
    ]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    plain, fused = (model.to(dtype) for model in both(name))
    x = images().to(dtype)
    assert torch.equal(fused(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    plain, fused = both(name)
    x = images()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(fused(x), plain(x))


def test_channels_last(name: str) -> None:
    plain, fused = (model.to(memory_format=torch.channels_last) for model in both(name))
    x = images().contiguous(memory_format=torch.channels_last)
    assert torch.equal(fused(x), plain(x))


def test_the_meta_device(name: str) -> None:
    _, fused = both(name)
    assert fused.to("meta")(images().to("meta")).shape == (2, 3)
    with torch.device("meta"):
        assert is_fused(fuse(SMALL[name]()))


def test_parameters_given_at_the_call(name: str) -> None:
    plain, fused = both(name)
    state = {key: 0.5 * value for key, value in plain.state_dict().items()}
    x = images()
    assert torch.equal(functional_call(fused, state, (x,)), functional_call(plain, state, (x,)))


def test_per_sample_gradients(name: str) -> None:
    plain, fused = both(name)
    x = images()
    found = []
    for model in (plain, fused):
        parameters = {key: p.detach() for key, p in model.named_parameters()}
        buffers = dict(model.named_buffers())

        def loss(parameters, sample, model=model, buffers=buffers):
            return functional_call(model, {**parameters, **buffers}, (sample[None],)).square().sum()

        found.append(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x))
    assert_same(found[1], found[0])


def test_jit_script(name: str) -> None:
    plain, fused = both(name)
    x = images()
    scripted = torch.jit.script(fused)
    torch.testing.assert_close(scripted(x), plain(x))
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), plain(x))


def test_jit_trace(name: str) -> None:
    plain, fused = both(name)
    x = images()
    traced, y = torch.jit.trace(fused, x), images()
    torch.testing.assert_close(traced(y), plain(y))


def test_export(name: str) -> None:
    plain, fused = both(name)
    x = images()
    program = torch.export.export(fused, (x,), strict=name == NAMES[1])
    torch.testing.assert_close(program.module()(x), plain(x))
    assert not [node for node in program.graph.nodes if "triton_attn" in str(node.target)]


def test_onnx(name: str) -> None:
    pytest.importorskip("onnxscript", reason="exports with the packages onnx and onnxscript")
    _, fused = both(name)
    program = torch.onnx.export(fused, (images(),), dynamo=True)
    assert not [node for node in program.model.graph if "triton_attn" in node.domain]


def test_torch_fx_takes_fused_modules_for_leaves(name: str) -> None:
    plain, fused = both(name)
    graph = torch.fx.symbolic_trace(fused)
    leaves = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    expected = {path for path, _ in outermost(fused, (fusion.Fused,))}
    assert expected
    assert expected <= set(leaves)
    assert is_fused(graph)
    x = images()
    assert torch.equal(graph(x), plain(x))


def test_features_of_torchvision(name: str) -> None:
    plain, fused = both(name)
    nodes = {"timm se, bottlenecks": "layer3", "timm efficientnet": "blocks.1", "torchvision mobilenet": "features.3"}
    x = images()
    extracted = [create_feature_extractor(each, {nodes[name]: "found"})(x)["found"] for each in (plain, fused)]
    assert torch.equal(*extracted)


def test_features_of_timm(name: str) -> None:
    if name.startswith("torchvision"):
        pytest.skip("timm's own networks alone")
    plain, fused = both(name)
    x = images()
    for ours, theirs in zip(*(FeatureGraphNet(each, out_indices=(0, 1))(x) for each in (fused, plain)), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpointing(name: str) -> None:
    plain, fused = both(name)
    for model in (plain, fused):
        if hasattr(model, "set_grad_checkpointing"):
            model.set_grad_checkpointing()
    x = images()
    assert_same(step(fused.train(), x), step(plain.train(), x))


def test_quantisation_of_linear_layers(name: str) -> None:
    plain, fused = (torch.ao.quantization.quantize_dynamic(each, {nn.Linear}) for each in both(name))
    x = images()
    assert torch.equal(fused(x), plain(x))
    assert is_fused(fused)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("before", [True, False])
def test_data_parallel(name: str, before: bool) -> None:
    plain, fused = SMALL[name](), SMALL[name]()
    fused.load_state_dict(plain.state_dict())
    if before:
        fuse(fused)
    parallel = nn.parallel.DistributedDataParallel(fused)
    if not before:
        fuse(parallel)
    x = images()
    ours = {key.removeprefix("module."): grad for key, grad in step(parallel, x).items()}
    assert_same(ours, step(plain, x))
    assert is_fused(parallel)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("before", [True, False])
def test_fully_sharded(name: str, before: bool) -> None:
    """Sharded around the network, around its blocks and around the attention itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, fused = SMALL[name](), SMALL[name]()
    fused.load_state_dict(plain.state_dict())
    mesh = init_device_mesh("cpu", (1,))
    paths = [entry.path for entry in triton_attn.fuse(copy.deepcopy(fused))]
    if before:
        fuse(fused)
    for path in (paths[0], paths[-1].rpartition(".")[0], ""):
        fully_shard(fused.get_submodule(path), mesh=mesh)
    if not before:
        report = triton_attn.fuse(fused)
        assert [(entry.path, entry.module) for entry in report.left] == [
            (paths[0], f"FSDP{type(plain.get_submodule(paths[0])).__name__}")
        ]
    x = images()
    ours = {key: grad.full_tensor() for key, grad in step(fused, x).items()}
    expected = step(plain, x)
    assert ours.keys() == expected.keys()
    for key, grad in ours.items():
        torch.testing.assert_close(grad, expected[key])
    assert is_fused(fused)
