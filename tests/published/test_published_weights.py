"""Official weights, in and out: the libraries' own keys and shapes, written out, and what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.published.official import CASES, Keys, layer, norm
from tests.reference.published.written_out import FORMULAS, nonlocal_
from triton_attn import published, reference


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(keys: Keys) -> dict[str, Tensor]:
    """Theirs, as they would lie in a file."""
    found = {key: 0.5 * draw(*shape, seed=i) for i, (key, shape) in enumerate(keys.items())}
    for key, value in found.items():
        if key.endswith("running_var"):
            found[key] = value.abs() + 0.5
        elif key.endswith("tracked"):
            found[key] = torch.tensor(7)
    return found


def as_formulas_name_it(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        name, _, last = key.rpartition(".")
        name = names.get(name, name)
        value = value.flatten(1) if name in ("fc1", "fc2") and last == "weight" else value
        found[f"{name}.{last}".removeprefix(".")] = value
    return found


@pytest.mark.parametrize("case", CASES)
def test_official_weights_compute_the_official_formula(case):
    make, name, keys, names = CASES[case]
    layout = case.partition(", ")[2]
    block, state = make().double().eval(), weights(keys)
    assert published.load(block, state, layout) == layout
    x = draw(2, 64 if name == "published.danet" else 16, 6, 5)
    signal = [draw(2, 24, 3, 4, seed=2)] if "gate" in name else []
    expected = FORMULAS[name](x, as_formulas_name_it(state, names), False, *signal)
    torch.testing.assert_close(block(x, *signal), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case):
    make, _, keys, _ = CASES[case]
    layout = case.partition(", ")[2]
    block, state = make().double(), weights(keys)
    assert layout in published.layouts(block)
    found = published.load(block, state)
    assert found == layout or found in published.layouts(block)
    exported = published.export(block, layout)
    assert {key: tuple(value.shape) for key, value in exported.items()} == keys
    assert all(torch.equal(value, state[key]) for key, value in exported.items())
    with torch.no_grad():
        for value in exported.values():
            value.fill_(0)
    assert any(value.any() for value in block.state_dict().values()), "memory of its own"
    half = make().to(torch.bfloat16)
    published.load(half, state, layout)
    assert next(half.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("case", CASES)
def test_found_by_the_names_alone(case):
    """Where two libraries agree in every name and shape, either will do."""
    make, _, keys, _ = CASES[case]
    block, layout = make().double(), case.partition(", ")[2]
    found = published.load(block, weights(keys))
    if found != layout:
        other = published.export(block, found)
        assert {key: tuple(value.shape) for key, value in other.items()} == keys


def modules() -> list[tuple[nn.Module, nn.Module]]:
    """Ours, with options, and other libraries' own modules."""
    from timm.layers import EcaModule, GlobalContext, SEModule
    from timm.layers.cbam import CbamModule
    from timm.layers.coord_attn import CoordAttn
    from timm.layers.non_local_attn import NonLocalAttn
    from torchvision.ops.misc import SqueezeExcitation

    return [
        (published.SEBlock(64, hidden_channels=8), SEModule(64)),
        (published.SEBlock(64, hidden_channels=16, hidden_activation="silu"), SqueezeExcitation(64, 16, nn.SiLU)),
        (
            published.SEBlock(64, hidden_channels=16, gate="hard_sigmoid"),
            SqueezeExcitation(64, 16, scale_activation=nn.Hardsigmoid),
        ),
        (published.ECABlock(256), EcaModule(256)),
        (published.CBAM(64, bias=False), CbamModule(64)),
        (
            published.CBAM(64, hidden_channels=8, kernel_size=3),
            CbamModule(64, 1 / 8, spatial_kernel_size=3, mlp_bias=True),
        ),
        (published.CoordinateAttention(64, bias=False), CoordAttn(64)),
        (published.CoordinateAttention(64, hidden_channels=16), CoordAttn(64, rd_channels=16, bias=True)),
        (published.NonLocal(64, 8, scale=64**-0.5, subsample=False), NonLocalAttn(64)),
        (published.GlobalContext(64), GlobalContext(64)),
    ]


@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("training", [True, False])
def test_other_libraries_modules(index, training):
    pytest.importorskip("timm"), pytest.importorskip("torchvision")
    torch.manual_seed(0)
    ours, theirs = (block.double().train(training) for block in modules()[index])
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    published.load(ours, theirs.state_dict())
    x = torch.randn(2, 256 if index == 3 else 64, 6, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, grad)[0] for y in (a, b)), rtol=1e-8, atol=1e-10)
    library = "torchvision" if type(theirs).__module__.startswith("torchvision") else "timm"
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    theirs.load_state_dict(published.export(ours, library), strict=True)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-10, atol=1e-10)


MMCV = (
    layer("g.0.conv", 8, 16, 1, 1)
    | layer("conv_out.conv", 16, 8, 1, 1, bias=False)
    | norm("conv_out.bn", 16)
    | layer("theta.conv", 8, 16, 1, 1)
    | layer("phi.0.conv", 8, 16, 1, 1)
)
MMCV_NAMES = {
    "g.0.conv": "g",
    "conv_out.conv": "out",
    "conv_out.bn": "norm",
    "theta.conv": "theta",
    "phi.0.conv": "phi",
}


def test_mmcv_has_no_bias_in_front_of_its_batch_norm():
    block, state, x = published.NonLocal(16, scale=8**-0.5).double().eval(), weights(MMCV), draw(2, 16, 6, 5)
    assert published.load(block, state) == "mmcv"
    expected = nonlocal_(x, as_formulas_name_it(state, MMCV_NAMES), False, scale=8**-0.5)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    exported = published.export(block, "mmcv")
    assert {key: tuple(value.shape) for key, value in exported.items()} == MMCV
    assert all(torch.equal(value, state[key]) for key, value in exported.items())
    with torch.no_grad():
        block.out.bias.copy_(draw(16, seed=3))  # as training may leave it: the batch norm's mean takes it along
    expected = block(x)
    other = published.NonLocal(16, scale=8**-0.5).double().eval()
    published.load(other, published.export(block, "mmcv"))
    assert not other.out.bias.any()
    torch.testing.assert_close(other(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "layout", "expected"),
    [
        ({"subsample": False}, "alexhex7", {"g", "W.0", "W.1", "theta", "phi"}),
        ({"norm": False}, "alexhex7", {"g.0", "W", "theta", "phi.0"}),
        ({"mode": "gaussian"}, "alexhex7", {"g.0", "W.0", "W.1"}),
        ({"mode": "gaussian", "norm": False}, "mmcv", {"g.0.conv", "conv_out.conv"}),
        (
            {"subsample": False, "mode": "dot_product"},
            "mmcv",
            {"g.conv", "conv_out.conv", "conv_out.bn", "theta.conv", "phi.conv"},
        ),
    ],
    ids=lambda given: (
        " ".join(sorted(given)) if isinstance(given, set) else str(given)
    ),  # a set has no order of its own
)
def test_names_that_go_by_the_options(options, layout, expected):
    exported = published.export(published.NonLocal(16, **options), layout)
    assert {key.rpartition(".")[0] for key in exported} == expected
    published.load(published.NonLocal(16, **options), exported, layout)


def test_danets_other_heads_are_left_out_all_or_none():
    _, _, keys, _ = CASES["head, danet"]
    state = weights(keys | layer("conv6.1", 5, 16, 1, 1) | layer("conv7.1", 5, 16, 1, 1))
    block = published.DualAttention(64, 5).double()
    published.load(block, state)
    assert set(published.export(block, "danet")) == set(keys)
    del state["conv7.1.bias"]
    with pytest.raises(ValueError, match=r"missing: conv7\.1\.bias$"):
        published.load(block, state)
    with pytest.raises(ValueError, match=r"not of this block: conv6\.1\.gamma$"):
        published.load(block, weights(keys | {"conv6.1.gamma": (1,)}))
    with pytest.raises(ValueError, match=r"conv6\.1\.weight \(4, 16, 1, 1\), expected \(5, 16, 1, 1\)"):
        published.load(block, weights(keys | layer("conv6.1", 4, 16, 1, 1) | layer("conv7.1", 5, 16, 1, 1)))


def test_weights_within_a_network():
    _, _, keys, _ = CASES["cbam, attention-module"]
    state = {f"layer1.0.cbam.{key}": value for key, value in weights(keys).items()} | {"fc.weight": draw(2, 2)}
    block = published.CBAM(16, 4).double()
    assert published.load(block, state, prefix="layer1.0.cbam.") == "attention-module"
    assert torch.equal(block.fc1.weight, state["layer1.0.cbam.ChannelGate.mlp.1.weight"])


def test_older_files_without_counters():
    _, _, keys, _ = CASES["cbam, attention-module"]
    state = {key: value for key, value in weights(keys).items() if not key.endswith("tracked")}
    block = published.CBAM(16, 4).double()
    published.load(block, state)
    assert block.norm.num_batches_tracked == 0


def test_every_key_is_accounted_for():
    _, _, keys, _ = CASES["cbam, attention-module"]
    state, block = weights(keys), published.CBAM(16, 4).double()
    before = {key: value.clone() for key, value in block.state_dict().items()}
    missing = {key: value for key, value in state.items() if key != "ChannelGate.mlp.3.bias"}
    with pytest.raises(ValueError, match=r"layout 'attention-module'.* missing: ChannelGate\.mlp\.3\.bias$"):
        published.load(block, missing)
    with pytest.raises(ValueError, match=r"not of this block: bn\.weight$"):
        published.load(block, state | {"bn.weight": draw(3)})
    reshaped = state | {"SpatialGate.spatial.conv.weight": draw(1, 2, 3, 3)}
    with pytest.raises(
        ValueError, match=r"of another shape: SpatialGate\.spatial\.conv\.weight \(1, 2, 3, 3\), expected \(1,"
    ):
        published.load(block, reshaped)
    with pytest.raises(ValueError, match=r"layout must be one of 'attention-module', 'timm', got 'keras'"):
        published.load(block, state, "keras")
    with pytest.raises(ValueError, match=r"the layout 'timm', .* missing: channel\.fc1\.weight"):
        published.load(block, state, "timm")
    with pytest.raises(ValueError, match=r"layout must be one of 'attention-module', 'timm', got None"):
        published.export(block, None)
    for wrong in (published.SimAM(), reference.CBAM(16), nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="no layout of official weights for a"):
            published.load(wrong, {})
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items()), "and nothing was loaded"


@pytest.mark.parametrize(
    ("block", "layout", "why"),
    [
        (published.SEBlock(16, bias=False, gate="hard_sigmoid"), "senet", "activations are relu and sigmoid"),
        (published.NonLocal(16, scale=0.5), "alexhex7", r"scale is 1, 1, and the block's 0\.5"),
        (published.NonLocal(16), "mmcv", r"scale is hidden_channels \*\* -0\.5, 0\.353553, and the block's 1"),
        (published.NonLocal(16, 2, scale=0.25), "timm", "subsample=False"),
        (published.NonLocal(16, 2, subsample=False), "timm", r"scale is channels \*\* -0\.5, 0\.25, and"),
        (published.CBAM(16, identity=True), "timm", "identity=True"),
        (published.SEBlock(16, gate="none", identity=True), "timm", "identity=True"),
        (published.DualAttention(32, identity=True), "danet", "identity=True"),
        (published.GridAttentionGate(16, identity=True), "attention-gated-networks", "identity=True"),
    ],
    ids=str,
)
def test_another_formula_is_refused(block, layout, why):
    with pytest.raises(ValueError, match=f"the layout '{layout}' is not this {type(block).__name__}'s: .*{why}"):
        published.export(block, layout)


@pytest.mark.parametrize(
    "block",
    [
        published.NonLocal(16, identity=True),
        published.PositionAttention(16, identity=True),
        published.SCSE(16, identity=True),
    ],
)
def test_the_identity_that_is_the_same_formula_is_not_refused(block):
    layout = published.layouts(block)[0]
    assert published.load(block, published.export(block, layout)) == layout
