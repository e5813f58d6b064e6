"""What is done to a fused module later counts at the call: it is computed as if it had been there from the first."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath, EcaModule, SEModule
from timm.layers.coord_attn import CoordAttn
from timm.models import resnet
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torchvision.ops import SqueezeExcitation

import triton_attn
from triton_attn import backend

pytestmark = pytest.mark.interpreter


class LowRank(nn.Module):
    """A layer with an adapter beside it, as LoRA puts in its place."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Conv2d(layer.in_channels, 2, 1), nn.Conv2d(2, layer.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def replace_forward(module: nn.Module) -> None:
    module.fc1.forward = lambda x: 2 * nn.Conv2d.forward(module.fc1, x)


def put(name: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, name, make(getattr(module, name)))


def listen(module: nn.Module) -> None:
    module.act.register_forward_hook(lambda *_: 2 * _[2])


LATER: dict[str, Callable[[nn.Module], object]] = {
    "a hook that changes what comes out": listen,
    "a hook before": lambda module: module.fc2.register_forward_pre_hook(lambda _, inputs: 2 * inputs[0]),
    "a hook on gradients": lambda module: module.fc2.register_full_backward_hook(lambda _, grads, __: (grads[0] * 2,)),
    "prune": lambda module: prune.random_unstructured(module.fc1, "weight", 0.5),
    "weight_norm": lambda module: weight_norm(module.fc1),
    "spectral_norm": lambda module: spectral_norm(module.fc2),
    "parametrization": lambda module: parametrizations.weight_norm(module.fc1),
    "LoRA": put("fc1", LowRank),
    "another activation": put("act", lambda _: nn.Tanh()),
    "another gate": put("gate", lambda _: nn.Softsign()),
    "a batch norm": put("bn", lambda _: nn.BatchNorm2d(8).eval()),
    "a replaced forward": replace_forward,
    "no bias": lambda module: module.fc1.register_parameter("bias", None),
    "grouped": put("fc1", lambda _: nn.Conv2d(16, 8, 1, groups=4)),
}


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("name", LATER)
def test_inside_of_squeeze_and_excitation(name: str) -> None:
    module = SEModule(16).eval()
    triton_attn.fuse(module)
    torch.manual_seed(1)
    LATER[name](module)
    x = torch.randn(3, 16, 4, 5)
    with backend.listen() as heard:
        ours = gradients(module, x)
    assert {choice.backend for choice in heard} == {"triton"}
    assert triton_attn.fuse(module)[0].note.startswith("by parts" if name != "no bias" else "one op")
    triton_attn.unfuse(module)
    for ours_, plain in zip(ours, gradients(module, x), strict=True):
        torch.testing.assert_close(ours_, plain)


def test_a_hook_inside_hears_every_call() -> None:
    module, heard = SEModule(16), []
    triton_attn.fuse(module)
    handle = module.fc1.register_forward_hook(lambda _, inputs, output: heard.append((inputs[0].shape, output.shape)))
    module(torch.randn(3, 16, 4, 5))
    assert heard == [((3, 16, 1, 1), (3, 8, 1, 1))]
    handle.remove()
    module(torch.randn(3, 16, 4, 5))
    assert len(heard) == 1


def test_hooks_on_all_modules() -> None:
    module, heard = SEModule(16), []
    triton_attn.fuse(module)
    handle = nn.modules.module.register_module_forward_hook(lambda each, *_: heard.append(type(each).__name__))
    try:
        module(torch.randn(3, 16, 4, 5))
    finally:
        handle.remove()
    assert heard == ["Conv2d", "Identity", "ReLU", "Conv2d", "Sigmoid", "FusedSEModule"]


def test_hooks_on_the_module_itself() -> None:
    module = SEModule(16)
    module.register_forward_hook(lambda _, __, output: output + 1)
    triton_attn.fuse(module)
    module.register_forward_pre_hook(lambda _, inputs: 2 * inputs[0])
    x = torch.randn(3, 16, 4, 5)
    torch.testing.assert_close(module(x), SEModule.forward(module, 2 * x) + 1)


def test_another_convolution_of_eca() -> None:
    module = EcaModule(16)
    triton_attn.fuse(module)
    x = torch.randn(3, 16, 4, 5)
    for kind in ({"padding_mode": "circular"}, {"bias": True}, {"dilation": 1, "padding": 1, "stride": 1}):
        module.conv = nn.Conv1d(1, 1, 3, **{"padding": 1, "bias": False, **kind})
        torch.testing.assert_close(module(x), EcaModule.forward(module, x))


def plain_reasons(module: nn.Module, x: Tensor) -> set[tuple[str, str]]:
    with backend.listen() as heard:
        module(x)
    return {(choice.backend, choice.reason) for choice in heard}


def test_a_pool_that_is_listened_to_is_called() -> None:
    module, heard = SqueezeExcitation(16, 4), []
    triton_attn.fuse(module)
    module.avgpool.register_forward_hook(lambda *_: heard.append(1))
    assert plain_reasons(module, torch.randn(1, 16, 3, 3)) == {
        ("reference", "avgpool has hooks or a forward of its own")
    }
    assert heard == [1]
    with (
        triton_attn.use_backend("triton"),
        pytest.raises(triton_attn.BackendError, match="cannot serve: avgpool has hooks or a forward of its own"),
    ):
        module(torch.randn(1, 16, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_errors_are_the_plain_ones(dtype: torch.dtype) -> None:
    plain = SEModule(16).to(dtype)
    fused = copy.deepcopy(plain)
    triton_attn.fuse(fused)
    for x in (
        torch.randn(2, 15, 3, 3, dtype=dtype),
        torch.randn(2, 16, 3, dtype=dtype),
        torch.randn(2, 16, 3, 3).half(),
        torch.ones(2, 16, 3, 3, dtype=torch.int64),
        None,
    ):
        with pytest.raises(Exception) as expected:  # noqa: PT011
            plain(x)
        with pytest.raises(type(expected.value)) as found:
            fused(x)
        assert str(found.value) == str(expected.value)


def test_float64_is_plain() -> None:
    module = SEModule(16).double()
    triton_attn.fuse(module)
    x = torch.randn(1, 16, 3, 3).double()
    assert torch.equal(module(x), SEModule.forward(module, x))


@pytest.mark.parametrize("act", [nn.ReLU, nn.Mish])
@pytest.mark.parametrize("inner", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outer", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast(outer: torch.dtype, inner: torch.dtype, act: type[nn.Module]) -> None:
    module = SEModule(16, act_layer=act)
    triton_attn.fuse(module)
    x = torch.randn(3, 16, 4, 5).to(outer)
    with torch.autocast("cpu", dtype=inner):
        y, plain = module(x), SEModule.forward(module, x)
    assert y.dtype == plain.dtype
    torch.testing.assert_close(y, plain, atol=0.02, rtol=0.02)


# Residual blocks.


def block(**options) -> nn.Module:
    made = resnet.BasicBlock(16, 16, attn_layer=SEModule, **options).eval()
    assert triton_attn.fuse(made)[0].tail
    return made


AROUND: dict[str, Callable[[nn.Module], object]] = {
    "a hook on the attention": lambda made: made.se.register_forward_hook(lambda _, __, output: 2 * output),
    "a hook on the activation": lambda made: made.act2.register_forward_pre_hook(lambda _, inputs: inputs[0] - 1),
    "another activation": put("act2", lambda _: nn.SiLU()),
    "no attention": lambda made: setattr(made, "se", None),
    "another attention": put("se", lambda _: nn.Conv2d(16, 16, 1)),
    "unfused attention": lambda made: triton_attn.unfuse(made.se),
    "something else that drops": put("drop_path", lambda _: nn.Dropout(0.5).eval()),
}


@pytest.mark.parametrize("name", AROUND)
def test_around_a_tail(name: str) -> None:
    made = block()
    AROUND[name](made)
    x = torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(made(x), resnet.BasicBlock.forward(made, x))
    assert made.fused_by.obstacle(made)


@pytest.mark.parametrize(
    ("attention", "kernel"),
    [
        (SEModule, "normed_apply_fwd_kernel"),
        (EcaModule, "normed_apply_fwd_kernel"),
        (CoordAttn, "normed_strips_kernel"),
    ],
)
def test_the_batch_norm_goes_with_a_tail_unless_it_is_listened_to(
    attention: type[nn.Module], kernel: str, started: list[str]
) -> None:
    made = resnet.BasicBlock(16, 16, attn_layer=attention)
    plain, x = copy.deepcopy(made), torch.randn(2, 16, 5, 5)
    (entry,) = triton_attn.fuse(made)
    assert entry.norm
    torch.testing.assert_close(made(x), plain(x))
    assert started.count(kernel) == 1
    for (key, a), b in zip(made.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    made.bn2.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(made(x), plain(x))
    assert started.count(kernel) == 1


def test_drop_path_counts_while_it_drops() -> None:
    made = block(drop_path=DropPath(0.5))
    x = torch.randn(8, 16, 5, 5)
    for training, rate in ((False, 0.5), (True, 0.0), (True, 0.5)):
        made.drop_path.drop_prob = rate
        made.train(training)
        torch.manual_seed(3)
        ours = made(x)
        torch.manual_seed(3)
        torch.testing.assert_close(ours, resnet.BasicBlock.forward(made, x))


def test_a_shortcut_of_another_dtype() -> None:
    made, x = block(), torch.randn(2, 16, 5, 5)
    made.downsample = nn.Sequential()
    made.downsample.register_forward_hook(lambda _, __, output: output.bfloat16())
    y = made(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, resnet.BasicBlock.forward(made, x))


def test_an_input_that_is_not_touched() -> None:
    """The shortcut is the input itself, which the plain forward does not write to either."""
    made, x = block(), torch.randn(2, 16, 5, 5)
    kept = x.clone()
    made(x)
    assert torch.equal(x, kept)
