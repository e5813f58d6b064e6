"""What transforms a call, with the kernels in it: under the interpreter."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as distributed
from timm.layers import SEModule
from timm.layers.eca import CecaModule
from timm.models import resnet
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torchvision.ops import SqueezeExcitation

import triton_attn
from benchmarks.counted.graphs import Graphs
from tests.fusion.networks import SMALL, drawn
from triton_attn import backend

pytestmark = pytest.mark.interpreter
NAMES = ("timm se, bottlenecks", "timm eca, circular", "torchvision mobilenet")


def both(name: str) -> tuple[nn.Module, nn.Module]:
    plain = SMALL[name]().eval().double().float()
    fused = copy.deepcopy(plain)
    assert not triton_attn.fuse(fused).left
    return plain, fused


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def gradients(model: nn.Module, x: Tensor, call=None) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = (model if call is None else call)(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def assert_close(ours: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """To rounding, whatever the size of what is compared."""
    for ours_, plain_ in zip(ours, plain, strict=True):
        assert (ours_ - plain_).norm() <= 1e-3 * plain_.norm()
        assert plain_.norm() > 0


BLOCKS = {
    "in one op": lambda: resnet.Bottleneck(16, 4, attn_layer=SEModule),
    "by parts": lambda: resnet.BasicBlock(16, 16, attn_layer=CecaModule),
    "torchvision": lambda: SqueezeExcitation(16, 4, scale_activation=nn.Hardsigmoid),
}


def one(name: str) -> nn.Module:
    """A block by itself: what is compiled is the same as in a network, and a network is compiled block by block."""
    return drawn(BLOCKS[name])().eval()


@pytest.mark.parametrize("name", BLOCKS)
def test_compiled_with_our_ops_in_one_graph(name: str) -> None:
    plain = one(name)
    fused = copy.deepcopy(plain)
    assert not triton_attn.fuse(fused).left
    torch.compiler.reset()
    graphs = Graphs("aot_eager")
    compiled = torch.compile(fused, fullgraph=True, backend=graphs)
    x = torch.randn(2, 16, 5, 7)
    assert_close(gradients(fused, x, compiled), gradients(plain, x))
    # What is computed by parts is the formula then, for the compiler to fuse.
    assert graphs.all_served() == (name != "by parts")


def test_compiled_a_tail_is_the_plain_formula_where_its_batch_norm_cannot_be_part_of_the_op() -> None:
    block, graphs = resnet.BasicBlock(16, 16, attn_layer=SEModule), Graphs("aot_eager")
    triton_attn.fuse(block)
    block.bn2 = nn.SyncBatchNorm(16)
    block.eval()
    x = torch.randn(2, 16, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, fullgraph=True, backend=graphs)(x), block(x))
    assert graphs.ops == [[]]


def test_fused_and_unfused_after_compiling() -> None:
    plain = one("in one op")
    model = copy.deepcopy(plain)
    torch.compiler.reset()
    graphs = Graphs("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    x = torch.randn(2, 16, 5, 7)
    expected = gradients(plain, x)
    assert_close(gradients(model, x, compiled), expected)
    assert graphs.ops == [[]]
    triton_attn.fuse(compiled)
    assert_close(gradients(model, x, compiled), expected)
    assert len(graphs.ops) == 2
    assert len(graphs.ops[1]) == 1
    triton_attn.unfuse(compiled)
    assert_close(gradients(model, x, compiled), expected)
    assert graphs.ops[2:] in ([], [[]])


def test_a_hook_after_compiling() -> None:
    model = one("in one op")
    triton_attn.fuse(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 16, 5, 7)
    before = compiled(x)
    model.se.fc1.register_forward_hook(lambda _, __, output: output + 1)
    torch.testing.assert_close(compiled(x), model(x))
    assert not torch.equal(compiled(x), before)


@pytest.mark.parametrize(("name", "reentrant"), [(NAMES[0], True), (NAMES[1], False), (NAMES[2], False)])
def test_checkpointing(name: str, reentrant: bool) -> None:
    plain, fused = both(name)
    x = images()
    ours = gradients(fused, x, lambda x: checkpoint(fused, x, use_reentrant=False)) if not reentrant else None
    if reentrant:
        x.requires_grad_()
        checkpoint(fused, x, use_reentrant=True).square().sum().backward()
        ours = [fused(x), x.grad, *(p.grad for p in fused.parameters())]
        x = x.detach()
    assert_close(ours, gradients(plain, x))


# Not with torchvision's MobileNet: PyTorch has no second derivative of the hard sigmoid.
@pytest.mark.parametrize("name", NAMES[:2])
def test_second_derivatives(name: str) -> None:
    found = []
    x = images()
    for model in both(name):
        inputs = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
        found.append(
            [first, *torch.autograd.grad(first.square().sum(), [inputs, *model.parameters()], allow_unused=True)]
        )
    for plain, ours in zip(*found, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_given_at_the_call(name: str) -> None:
    plain, fused = both(name)
    state = {key: 0.5 * value for key, value in plain.state_dict().items()}
    x = images()
    with backend.listen() as heard:
        ours = functional_call(fused, state, (x,))
    assert {choice.backend for choice in heard} == {"triton"}
    torch.testing.assert_close(ours, functional_call(plain, state, (x,)), atol=1e-4, rtol=1e-4)


# One for each class of host: that others' attention is right in training is the business of test_parity.
@pytest.mark.parametrize(
    "name",
    [
        "timm se, basic blocks",
        "timm efficientnet",
        "timm byobnet",
        "timm senet, basic blocks",
        "timm tresnet",
        "torchvision mobilenet",
    ],
)
def test_networks_train(name: str) -> None:
    """In training, batch norms and all; explain says that Triton serves every fused module."""
    plain, fused = both(name)
    x = torch.randn(3, 3, 64, 64)  # so that no batch norm sees two values alone
    assert {each.backend for each in triton_attn.explain(fused, x)} == {"triton"}
    found = []
    for model in (plain.train(), fused.train()):
        torch.manual_seed(1)
        found.append(gradients(model, x))
    # Rounding, amplified by the batch norms of few values: all of them together, relative to their size.
    ours, theirs = (torch.cat([t.double().flatten() for t in each]) for each in found[::-1])
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
    for (path, before), (_, after) in zip(plain.named_buffers(), fused.named_buffers(), strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4, msg=path)


def test_sharded_as_a_whole() -> None:
    """The root gathers its parameters, so that the kernels see plain ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, fused = both("timm se, bottlenecks")
    x = images()
    expected = gradients(plain, x)[2:]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(fused, mesh=init_device_mesh("cpu", (1,)))
        with backend.listen() as heard:
            fused(x).square().sum().backward()
        assert {choice.backend for choice in heard} == {"triton"}
        assert_close([parameter.grad.full_tensor() for parameter in fused.parameters()], expected)
    finally:
        distributed.destroy_process_group()
