"""The plain blocks against the formulas: state-dict keys, values written out a second time, gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_attn import reference
from triton_attn.reference.eca import adaptive_kernel_size
from triton_attn.reference.registry import BLOCKS

# The least channel count that every block accepts with its default arguments.
LEAST = {"cbam": 16, "coordinate": 16, "dual": 16, "eca": 1, "gate": 2, "nonlocal": 2, "pixel": 16, "se": 16}
SMALL = {"cbam": {"reduction": 2}, "coordinate": {"reduction": 2}, "dual": {"reduction": 2}, "se": {"reduction": 2}}
NAMES = sorted(BLOCKS)


def make(name: str, channels: int, dtype: torch.dtype = torch.float64, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return BLOCKS[name](channels, **kwargs, dtype=dtype)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# State-dict keys, for C channels and the default arguments.


def gate_network(prefix: str, channels: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}fc1.weight": (hidden, channels),
        f"{prefix}fc1.bias": (hidden,),
        f"{prefix}fc2.weight": (channels, hidden),
        f"{prefix}fc2.bias": (channels,),
    }


def pointwise(name: str, out: int, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, channels, 1, 1), f"{name}.bias": (out,)}


def expected_keys(name: str, c: int) -> dict[str, tuple[int, ...]]:
    m = c // 16
    return {
        "pixel": pointwise("conv1", m, c) | pointwise("conv2", c, m),
        "se": gate_network("", c, m),
        "eca": {"conv.weight": (1, 1, 3)},
        "cbam": gate_network("channel_attention.", c, m)
        | {"spatial_attention.weight": (1, 2, 7, 7), "spatial_attention.bias": (1,)},
        "coordinate": pointwise("fc", m, c) | pointwise("fc_out", c, m),
        "dual": gate_network("channel_attention.", c, m)
        | gate_network("spatial_attention.channel_attention.", c, m)
        | {
            "spatial_attention.spatial_attention.weight": (1, 2, 7, 7),
            "spatial_attention.spatial_attention.bias": (1,),
        },
        "nonlocal": pointwise("query_conv", c // 2, c)
        | pointwise("key_conv", c // 2, c)
        | pointwise("value_conv", c, c),
        "gate": pointwise("conv1", c // 2, c) | pointwise("conv2", c // 2, c) | pointwise("psi", 1, c // 2),
    }[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [32, 53])
def test_state_dict_keys_and_shapes(name, channels):
    state = BLOCKS[name](channels).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected_keys(name, channels)


@pytest.mark.parametrize("name", ["cbam", "coordinate", "dual", "se"])
def test_reduction_sets_the_hidden_width(name):
    shapes = {key: tuple(value.shape) for key, value in BLOCKS[name](24, reduction=5).state_dict().items()}
    first = next(shape for key, shape in shapes.items() if key.endswith(("fc1.weight", "fc.weight")))
    assert first[:2] == (4, 24)
    assert BLOCKS[name](24, 5).state_dict().keys() == shapes.keys(), "reduction is the second positional argument"


# The formulas, written a second time without any of torch.nn.


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def relu(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, torch.zeros_like(z))


def positions_mean(x: Tensor) -> Tensor:
    return torch.einsum("nchw->nc", x) / (x.shape[2] * x.shape[3])


def map1x1(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return (
        torch.einsum("oc,nchw->nohw", state[f"{name}.weight"][:, :, 0, 0], x)
        + state[f"{name}.bias"][None, :, None, None]
    )


def se_formula(x: Tensor, state: dict[str, Tensor], prefix: str = "") -> Tensor:
    hidden = relu(
        torch.einsum("mc,nc->nm", state[f"{prefix}fc1.weight"], positions_mean(x)) + state[f"{prefix}fc1.bias"]
    )
    logits = torch.einsum("cm,nm->nc", state[f"{prefix}fc2.weight"], hidden) + state[f"{prefix}fc2.bias"]
    return x * sigmoid(logits)[:, :, None, None]


def cbam_formula(x: Tensor, state: dict[str, Tensor], prefix: str = "") -> Tensor:
    u = se_formula(x, state, f"{prefix}channel_attention.")
    weight, bias = state[f"{prefix}spatial_attention.weight"], state[f"{prefix}spatial_attention.bias"]
    _, channels, height, width = u.shape
    mean, peak = u.sum(1) / channels, torch.stack(u.unbind(1)).sort(0).values[-1]
    out = torch.zeros_like(mean)
    for kind, pooled in enumerate((mean, peak)):
        for row, column, dy, dx in itertools.product(range(height), range(width), range(-3, 4), range(-3, 4)):
            if 0 <= row + dy < height and 0 <= column + dx < width:
                out[:, row, column] += weight[0, kind, dy + 3, dx + 3] * pooled[:, row + dy, column + dx]
    return u * sigmoid(out + bias)[:, None]


def eca_formula(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    weight, mean, channels = state["conv.weight"][0, 0], positions_mean(x), x.shape[1]
    size = len(weight)
    logits = torch.zeros_like(mean)
    for c, tap in itertools.product(range(channels), range(size)):
        source = c + tap - size // 2
        if 0 <= source < channels:
            logits[:, c] += weight[tap] * mean[:, source]
    return x * sigmoid(logits)[:, :, None, None]


def coordinate_formula(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    def f(z: Tensor) -> Tensor:
        return map1x1(map1x1(z, state, "fc"), state, "fc_out")

    peak = x.flatten(2).sort(-1).values[..., -1]
    return x * (f(positions_mean(x)[:, :, None, None]) + f(peak[:, :, None, None]))


def dual_formula(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    return cbam_formula(se_formula(x, state, "channel_attention."), state, "spatial_attention.")


def pixel_formula(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    return x * sigmoid(map1x1(relu(map1x1(x, state, "conv1")), state, "conv2"))


def gate_formula(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    return x * sigmoid(map1x1(relu(map1x1(x, state, "conv1") + map1x1(x, state, "conv2")), state, "psi"))


def nonlocal_formula(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    q, k, v = (map1x1(x, state, name).flatten(2) for name in ("query_conv", "key_conv", "value_conv"))
    out = torch.zeros_like(v)
    for n, position in itertools.product(range(x.shape[0]), range(v.shape[2])):
        scores = torch.einsum("d,dj->j", q[n, :, position], k[n])  # no scale
        weights = torch.exp(scores - scores.max())
        out[n, :, position] = torch.einsum("j,cj->c", weights / weights.sum(), v[n])
    return x + out.reshape(x.shape)


FORMULAS = {
    "cbam": cbam_formula,
    "coordinate": coordinate_formula,
    "dual": dual_formula,
    "eca": eca_formula,
    "gate": gate_formula,
    "nonlocal": nonlocal_formula,
    "pixel": pixel_formula,
    "se": se_formula,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 33, 5, 7), (1, 16, 1, 1), (3, 19, 9, 2)], ids=str)
def test_formula(name, shape):
    block, x = make(name, shape[1]), draw(*shape)
    # Parameters of some size, so that no gate stays near one half.
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(draw(*parameter.shape, seed=parameter.numel()) * 0.7)
    torch.testing.assert_close(block(x), FORMULAS[name](x, block.state_dict()), rtol=1e-11, atol=1e-11)


def test_eca_formula_with_a_wide_kernel():
    for channels, size in ((3, 7), (21, 5), (2, 1)):
        block, x = make("eca", channels, kernel_size=size), draw(2, channels, 4, 3)
        torch.testing.assert_close(block(x), eca_formula(x, block.state_dict()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_shortcut_is_added_before_a_relu(name):
    block, x, shortcut = make(name, 16), draw(2, 16, 5, 3), draw(2, 16, 5, 3, seed=2)
    expected = relu(FORMULAS[name](x, block.state_dict()) + shortcut)
    assert (expected == 0).any()
    assert (expected > 0).any()
    kept_x, kept_shortcut = x.clone(), shortcut.clone()
    torch.testing.assert_close(block(x, shortcut=shortcut), expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(x, kept_x)
    assert torch.equal(shortcut, kept_shortcut)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_gradients_of_inputs_and_parameters(name, with_shortcut):
    channels = LEAST[name] if name == "pixel" else 4
    block = make(name, channels, **SMALL.get(name, {}))
    x = draw(2, channels, 2, 3).requires_grad_()
    shortcut = draw(2, channels, 2, 3, seed=2).requires_grad_() if with_shortcut else None
    names, parameters = zip(*block.named_parameters(), strict=True)
    # Generic numbers, away from ReLU's kink and from ties.
    parameters = tuple(draw(*p.shape, seed=9 + i).mul_(0.5).requires_grad_() for i, p in enumerate(parameters))

    def call(x, *parameters):
        arguments = {"shortcut": shortcut} if with_shortcut else {}
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,), arguments)

    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    if with_shortcut:
        fixed = x.detach()
        assert torch.autograd.gradcheck(lambda s: block(fixed, shortcut=s), (shortcut,), fast_mode=True)


def test_one_channel_where_the_formula_allows_it():
    for name in ("eca", "se", "cbam", "coordinate", "dual"):
        kwargs = {} if name == "eca" else {"reduction": 1}
        block, x = make(name, 1, **kwargs), draw(2, 1, 4, 3)
        torch.testing.assert_close(block(x), FORMULAS[name](x, block.state_dict()), rtol=1e-12, atol=1e-12)
    gate = reference.AttentionGate(2, gating_channels=1)
    assert gate(torch.ones(1, 2, 3, 3), torch.ones(1, 1, 3, 3)).shape == (1, 2, 3, 3)


# Maxima that tie.


def tied_map() -> Tensor:
    x = -draw(1, 4, 3, 3).abs()
    x[0, 0, 0, 1] = x[0, 0, 2, 2] = x[0, 0, 1, 1] = 2.0
    x[0, 1].clamp_(max=-9).add_(10)  # all nine positions the same
    return x


def test_coordinate_shares_a_tied_maximum_evenly():
    block = make("coordinate", 4, reduction=2)
    x = tied_map()
    # The gradient that goes through the maxima alone: the gate's input is (mean, peak), so take the mean's part away.
    leaf = x.clone().requires_grad_()
    gate = block.attention_maps(leaf)["channel"]
    weights = draw(1, 4, 1, 1, seed=5)
    (whole,) = torch.autograd.grad((gate * weights).sum(), leaf)
    per_channel = torch.einsum(
        "mc,om,o->c", block.fc.weight[:, :, 0, 0], block.fc_out.weight[:, :, 0, 0], weights.flatten()
    )
    through_mean = (per_channel / 9)[None, :, None, None]
    winners = (x == x.amax((2, 3), keepdim=True)).double()
    assert winners.sum((2, 3)).flatten().tolist() == [3, 9, 1, 1]
    shared = winners / winners.sum((2, 3), keepdim=True) * per_channel[None, :, None, None]
    torch.testing.assert_close(whole, through_mean + shared, rtol=1e-11, atol=1e-11)


def test_cbam_gives_a_tied_maximum_to_the_first_channel():
    block = make("cbam", 4, reduction=2)
    with torch.no_grad():
        block.spatial_attention.weight[:, 0] = 0  # the mean over channels plays no part
    u = draw(2, 4, 3, 3)
    u[:, 1] = u[:, 3] = 5.0
    u = u.requires_grad_()
    (grad,) = torch.autograd.grad(block.spatial_gate(u).sum(), u)
    assert (grad[:, 1] != 0).all()
    assert (grad[:, [0, 2, 3]] == 0).all()


# One block at a time.


@pytest.mark.parametrize(
    ("channels", "size"),
    [(1, 3), (2, 3), (8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_eca_adaptive_kernel_size(channels, size):
    # The paper's code: t = int(abs((log2(C) + b) / gamma)), k = t if t % 2 else t + 1, here with a floor of 3.
    t = int(abs((math.log2(channels) + 1) / 2))
    assert max(t if t % 2 else t + 1, 3) == size
    assert adaptive_kernel_size(channels) == size
    assert reference.ECABlock(channels, kernel_size=None).conv.weight.shape == (1, 1, size)


def test_eca_refuses_an_even_kernel():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        reference.ECABlock(16, kernel_size=4)
    assert reference.ECABlock(16, 5).conv.weight.shape == (1, 1, 5)
    assert "bias" not in reference.ECABlock(16).state_dict()


@pytest.mark.parametrize("gating_shape", [(2, 10, 3, 4), (2, 10, 12, 8), (2, 10, 6, 8), (2, 10, 1, 1), (2, 10, 5, 9)])
def test_gate_takes_a_signal_of_other_channels_and_size(gating_shape):
    torch.manual_seed(0)
    block = reference.AttentionGate(6, gating_channels=10, dtype=torch.float64)
    assert block.conv2.weight.shape == (3, 10, 1, 1)
    x, gating = draw(2, 6, 6, 8), draw(*gating_shape, seed=3)
    # The other order: resize the signal itself, then convolve.
    resized = F.interpolate(gating, size=(6, 8), mode="bilinear", align_corners=False)
    state = block.state_dict()
    expected = x * sigmoid(map1x1(relu(map1x1(x, state, "conv1") + map1x1(resized, state, "conv2")), state, "psi"))
    torch.testing.assert_close(block(x, gating), expected, rtol=1e-11, atol=1e-11)
    shortcut = draw(2, 6, 6, 8, seed=4)
    torch.testing.assert_close(block(x, gating, shortcut), relu(expected + shortcut), rtol=1e-11, atol=1e-11)


def test_gate_gradient_reaches_the_signal():
    torch.manual_seed(0)
    block = reference.AttentionGate(4, gating_channels=3, dtype=torch.float64)
    x, gating = draw(2, 4, 3, 4).requires_grad_(), draw(2, 3, 2, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, g: block(x, g), (x, gating))


def test_gate_takes_an_empty_batch_and_a_signal_of_another_size():
    block = reference.AttentionGate(4, gating_channels=3)
    assert block(torch.zeros(0, 4, 6, 6), torch.zeros(0, 3, 3, 3)).shape == (0, 4, 6, 6)


def test_gate_refuses_a_wrong_signal():
    block = reference.AttentionGate(6, gating_channels=10)
    x = torch.zeros(2, 6, 4, 4)
    with pytest.raises(ValueError, match=r"gating must be given, \(N, 10, H, W\)"):
        block(x)
    with pytest.raises(ValueError, match=r"gating must be given"):
        block.attention_maps(x)
    with pytest.raises(ValueError, match=r"gating must have 10 channels"):
        block(x, torch.zeros(2, 6, 4, 4))
    with pytest.raises(ValueError, match=r"gating must have x's batch size 2, got shape \(1, 10, 4, 4\)"):
        block(x, torch.zeros(1, 10, 4, 4))
    with pytest.raises(ValueError, match=r"gating must be 4-D"):
        block(x, torch.zeros(2, 10))
    with pytest.raises(TypeError, match=r"gating must be float16"):
        block(x, torch.zeros(2, 10, 4, 4, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"gating is torch\.float64"):
        block(x, torch.zeros(2, 10, 4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"gating is on meta"):
        block(x, torch.zeros(2, 10, 4, 4, device="meta"))


def test_a_block_without_maps_says_so():
    with pytest.raises(TypeError, match="NonLocalBlock does not define attention_maps"):
        reference.NonLocalBlock(4).attention_maps(torch.zeros(1, 4, 2, 2))
