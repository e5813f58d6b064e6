"""What every plain twin keeps, the tutorial's and the published: dtype, layout, shortcut, autocast, strides, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from triton_attn.reference import published
from triton_attn.reference.registry import ALL, BLOCKS

NAMES = sorted(ALL)
LEAST = {"cbam": 16, "coordinate": 16, "dual": 16, "gate": 2, "nonlocal": 2, "pixel": 16, "se": 16}
LEAST |= {
    f"published.{name}": least
    for name, least in {
        "cbam": 16,
        "danet": 32,
        "gate": 2,
        "global_context": 8,
        "grid_gate": 2,
        "nonlocal": 2,
        "position": 8,
        "scse": 16,
        "se": 16,
    }.items()
}
NO_PARAMETERS = "published.simam"


def make(name: str, dtype: torch.dtype = torch.float64, channels: int = 32, **options: object) -> nn.Module:
    """In evaluation, and with gates of some size where the published start is the identity."""
    torch.manual_seed(0)
    block = ALL[name](channels, **options, dtype=dtype).eval()
    with torch.no_grad():
        for key, parameter in block.named_parameters():
            if key.endswith("gamma") or key == "norm.weight":
                parameter.fill_(0.7)
    return block


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# Not all sixteen: a dtype, a layout and a shortcut do not know of each other. Each is there with each value of another.
KINDS = {
    "float16, channels_last, shortcut": (torch.float16, torch.channels_last, True),
    "bfloat16, contiguous": (torch.bfloat16, torch.contiguous_format, False),
    "float32, contiguous, shortcut": (torch.float32, torch.contiguous_format, True),
    "float64, channels_last": (torch.float64, torch.channels_last, False),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_dtype_and_layout_are_kept(name, kind):
    dtype, layout, with_shortcut = KINDS[kind]
    block = make(name, dtype)
    x = (draw(2, 32, 5, 6) / 2).to(dtype).contiguous(memory_format=layout)
    shortcut = x.flip(0).contiguous(memory_format=layout) if with_shortcut else None
    y = block(x, shortcut=shortcut)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=layout)
    exact = make(name)
    exact.load_state_dict(block.state_dict())
    expected = exact(x.double(), shortcut=None if shortcut is None else shortcut.double())
    least = {torch.float16: 6e-3, torch.bfloat16: 5e-2, torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    tolerance = least if name in BLOCKS or dtype == torch.float64 else 1.6 * least  # batch norms and more layers
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    if with_shortcut:
        torch.testing.assert_close(expected, torch.relu(exact(x.double()) + shortcut.double()))
        assert (expected == 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_other_strides_give_the_same(name):
    block, x = make(name), draw(2, 32, 6, 5)
    wide = draw(2, 64, 12, 5)
    wide[:, ::2, ::2] = x
    torch.testing.assert_close(block(wide[:, ::2, ::2]), block(x), rtol=1e-12, atol=1e-12)
    flipped = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(block(flipped), block(x), rtol=1e-12, atol=1e-12)
    expanded = draw(1, 32, 1, 1).expand(2, 32, 3, 3)
    torch.testing.assert_close(block(expanded), block(expanded.contiguous()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "training"), [((0, 32, 4, 4), True), ((1, 33, 2, 9), False), ((2, 63, 7, 3), True)], ids=str
)
def test_small_and_odd_sizes(name, shape, training):
    block = make(name, torch.float32, shape[1]).train(training)
    x = draw(*shape, dtype=torch.float32).requires_grad_()
    y = block(x, shortcut=x.detach())
    assert y.shape == x.shape
    y.sum().backward()
    for each in (x, *block.parameters()):
        assert each.grad is not None
        assert each.grad.isfinite().all()
    if shape[0] == 0:
        assert all((p.grad == 0).all() for p in block.parameters())
        assert all(value.isfinite().all() for value in block.state_dict().values())


def test_one_position():
    for name in NAMES:
        if name != "published.grid_gate":
            assert make(name)(draw(2, 32, 1, 1)).isfinite().all(), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_takes_float32_parameters(name, x_dtype):
    block, x = make(name, torch.float32).train(), draw(2, 32, 6, 6).to(x_dtype).requires_grad_()
    for module in block.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
    exact = make(name).train(block.training)
    exact.load_state_dict(block.state_dict())
    for module in exact.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
    tolerance = 5e-2 if name in BLOCKS else 1e-1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x, shortcut=x.detach())
    assert y.dtype == x_dtype
    torch.testing.assert_close(y.double(), exact(x.double(), shortcut=x.double()), rtol=tolerance, atol=tolerance)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in block.parameters())
    assert x.grad.dtype == x_dtype


@pytest.mark.parametrize("identity", [False, True])
def test_constructors_take_device_and_dtype(identity):
    for name in NAMES:
        block = ALL[name](32, identity=identity, device="meta", dtype=torch.float16).eval()
        for key, value in block.state_dict().items():
            assert value.is_meta, (name, key)
            assert value.dtype == (torch.int64 if key.endswith("tracked") else torch.float16), (name, key)
        assert block(torch.empty(2, 32, 3, 3, device="meta", dtype=torch.float16)).shape == (2, 32, 3, 3)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused(name):
    block, x = make(name, torch.float32), torch.zeros(2, 32, 4, 5)
    width = "C" if name == NO_PARAMETERS and block.channels is None else "32"
    with pytest.raises(ValueError, match=rf"x must be 4-D, \(N, {width}, H, W\), got shape \(32, 4, 5\)"):
        block(x[0])
    with pytest.raises(ValueError, match=r"x must have 32 channels.* got shape \(2, 33, 4, 5\)"):
        block(torch.zeros(2, 33, 4, 5))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"x must be float16, .*got {dtype}"):
            block(x.to(dtype))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor.*got ndarray"):
        block(x.numpy())
    for shape in ((2, 32, 4, 1), (1, 32, 4, 5), (32, 4, 5)):
        with pytest.raises(ValueError, match=r"shortcut must have x's shape \(2, 32, 4, 5\), got \("):
            block(x, shortcut=torch.zeros(shape))
    with pytest.raises(TypeError, match=r"shortcut must be a torch\.Tensor.*got float"):
        block(x, shortcut=1.0)
    with pytest.raises(TypeError, match=r"shortcut must be float16, .*got torch\.int64"):
        block(x, shortcut=x.long())
    with pytest.raises(ValueError, match="shortcut is on meta, but x is on cpu"):
        block(x, shortcut=x.to("meta"))
    if name == NO_PARAMETERS:
        return
    with pytest.raises(TypeError, match=r"x is torch\.float64, but the block's parameters are torch\.float32"):
        block(x.double())
    with pytest.raises(ValueError, match="x is on meta, but the block's parameters are on cpu"):
        block(x.to("meta"))


def test_blocks_of_any_channels():
    for block in (published.SimAM(), published.ChannelAttention()):
        assert block(draw(1, 3, 2, 2, dtype=torch.float32)).shape == (1, 3, 2, 2)
        with pytest.raises(ValueError, match=r"x must be 4-D, \(N, C, H, W\), got shape \(3, 2\)"):
            block(torch.zeros(3, 2))


def test_a_reduction_that_leaves_no_hidden_channel_is_refused():
    for name, least in LEAST.items():
        ALL[name](least)
        with pytest.raises(ValueError, match=r"leaves no hidden channel: \d+ channels // \d+ = 0"):
            ALL[name](least - 1)


@pytest.mark.parametrize("wrong", [0, -4, 2.0, True, "16"])
def test_counts_must_be_positive_integers(wrong):
    message = rf"must be a positive integer, got {wrong!r}"
    for name in NAMES:
        with pytest.raises(ValueError, match=f"channels {message}"):
            ALL[name](wrong)
    takes = ("cbam", "coordinate", "scse", "se", "global_context")
    for name in ("cbam", "coordinate", "dual", "se", *(f"published.{name}" for name in takes)):
        with pytest.raises(ValueError, match=f"reduction {message}"):
            ALL[name](16, reduction=wrong)
    for name in ("cbam", "coordinate", "danet", "gate", "grid_gate", "nonlocal", "position", "scse", "se"):
        with pytest.raises(ValueError, match=f"hidden_channels {message}"):
            ALL[f"published.{name}"](16, hidden_channels=wrong)
    for name in ("gate", "published.gate", "published.grid_gate"):
        with pytest.raises(ValueError, match=f"gating_channels {message}"):
            ALL[name](16, gating_channels=wrong)
    for name in ("eca", "published.eca"):
        with pytest.raises(ValueError, match=f"kernel_size {message}"):
            ALL[name](16, kernel_size=wrong)
    with pytest.raises(ValueError, match=f"stride {message}"):
        published.GridAttentionGate(16, stride=wrong)
    with pytest.raises(ValueError, match=f"out_channels {message}"):
        published.DualAttention(32, out_channels=wrong)


def test_choices_of_nonlocal_are_checked():
    with pytest.raises(ValueError, match=r"mode must be one of 'embedded_gaussian', .*, got 'concatenation'"):
        published.NonLocal(8, mode="concatenation")
    for wrong in ("1", True, [1.0], float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"scale must be a finite number or None, got"):
            published.NonLocal(8, scale=wrong)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("cbam", {"channel", "spatial"}),
        ("coordinate", {"channel"}),
        ("dual", {"channel", "spatial"}),
        ("eca", {"channel"}),
        ("gate", {"spatial"}),
        ("pixel", {"pixel"}),
        ("se", {"channel"}),
        ("published.cbam", {"channel", "spatial"}),
        ("published.coordinate", {"pixel"}),
        ("published.eca", {"channel"}),
        ("published.gate", {"spatial"}),
        ("published.global_context", {"channel"}),
        ("published.pixel", {"pixel"}),
        ("published.se", {"channel"}),
        ("published.simam", {"pixel"}),
    ],
)
def test_attention_maps_reproduce_the_forward(name, kinds):
    block, x = make(name), draw(2, 32, 5, 7)
    maps = block.attention_maps(x)
    assert maps.keys() == kinds
    shapes = {"channel": (2, 32, 1, 1), "spatial": (2, 1, 5, 7), "pixel": (2, 32, 5, 7)}
    product = x
    for kind, gate in maps.items():
        assert gate.shape == shapes[kind]
        product = product * gate
    torch.testing.assert_close(product, block(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="x must be 4-D"):
        block.attention_maps(x[0])
    if name in BLOCKS:
        with pytest.raises(TypeError, match=r"x must be float16"):
            block.attention_maps(x.long())


def test_the_two_gates_of_scse_are_added():
    block, x = make("published.scse"), draw(2, 32, 5, 7)
    maps = block.attention_maps(x)
    torch.testing.assert_close(x * (maps["channel"] + maps["spatial"]), block(x), rtol=1e-12, atol=1e-12)
