"""fuse and unfuse: which modules change, what stays, what is left and why."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import timm
import torch
from timm.layers import SEModule
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

import triton_attn
from tests.fusion import kinds
from tests.fusion.networks import FULL, SMALL, timm_resnet
from triton_attn import fusion
from triton_attn.fusion import swap
from triton_attn.fusion.adapters.timm import FusedSEModule
from triton_attn.fusion.adapters.timm_tails import FusedBasicBlock


def state(model: nn.Module) -> dict[str, object]:
    """All that a module has, but for its class."""
    return {path: {**module.__dict__} for path, module in model.named_modules()}


def classes(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()}


@pytest.mark.parametrize("name", SMALL)
def test_a_network_of_another_library(name: str) -> None:
    model = SMALL[name]()
    before, plain = state(model), classes(model)
    report = triton_attn.fuse(model)
    assert report
    assert not report.left
    assert state(model) == before
    for entry in report:
        module = model.get_submodule(entry.path)
        assert isinstance(module, plain[entry.path])
        assert type(module).__name__.startswith("Fused")
    tails = {type(model.get_submodule(entry.path.rpartition(".")[0])) for entry in report if entry.tail or entry.norm}
    assert all(issubclass(each, fusion.Fused) for each in tails)
    fused = [path for path, cls in classes(model).items() if cls is not plain[path]]
    assert triton_attn.unfuse(model) == len(fused) == len(report) + sum(entry.tail or entry.norm for entry in report)
    assert classes(model) == plain
    assert state(model) == before


def test_the_classes_are_found_under_their_names() -> None:
    known = swap.known().values()
    assert len(known) > 10
    for fused in known:
        assert pickle.loads(pickle.dumps(fused)) is fused


def test_fusing_again_and_unfusing_nothing() -> None:
    model = timm_resnet("se")
    first = triton_attn.fuse(model)
    assert triton_attn.fuse(model) == first
    triton_attn.unfuse(model)
    assert triton_attn.unfuse(model) == 0


def test_tails_may_be_left() -> None:
    model = timm_resnet("se")
    report = triton_attn.fuse(model, tails=False)
    assert not report.left
    assert not any(entry.tail for entry in report)
    assert type(model.layer1[0]) is timm.models.resnet.BasicBlock
    assert type(model.layer1[0].se) is FusedSEModule
    assert all(entry.tail for entry in triton_attn.fuse(model))
    assert type(model.layer1[0]) is FusedBasicBlock


def test_a_module_by_itself() -> None:
    module = SEModule(16)
    (entry,) = triton_attn.fuse(module)
    assert entry == fusion.Entry("(itself)", "SEModule", True, "one op")
    assert type(module) is FusedSEModule


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: kinds.Watched(16), "a subclass of SEModule with a forward of its own, which has no adapter"),
        (lambda: kinds.Renamed(16), "a subclass of SEModule, which has no adapter"),
        (lambda: kinds.NobodysSE(16), "no adapter for it"),
    ],
)
def test_what_has_no_adapter_is_left(build, reason) -> None:
    model = nn.Sequential(build())
    cls = type(model[0])
    (entry,) = triton_attn.fuse(model).left
    assert (entry.path, entry.module, entry.note) == ("0", cls.__name__, reason)
    assert type(model[0]) is cls


def test_a_forward_that_was_replaced_is_left() -> None:
    module = SEModule(16)
    module.forward = lambda x: x
    (entry,) = triton_attn.fuse(module).left
    assert entry.note == "its forward was replaced on the instance"
    assert type(module) is SEModule


def test_another_pool_is_left() -> None:
    module = SqueezeExcitation(16, 4)
    module.avgpool = nn.AdaptiveMaxPool2d(1)
    (entry,) = triton_attn.fuse(module).left
    assert entry.note == "avgpool is AdaptiveMaxPool2d, expected an adaptive average pool to one value"
    module.avgpool = nn.AdaptiveAvgPool2d(1)
    module.avgpool.register_forward_hook(print)
    (entry,) = triton_attn.fuse(module).left
    assert entry.note == "avgpool has hooks or a forward of its own"


def test_a_forward_that_nobody_read_is_left(monkeypatch) -> None:
    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(x.amax((2, 3), keepdim=True)))))

    monkeypatch.setattr(SEModule, "forward", forward)
    (entry,) = triton_attn.fuse(SEModule(16)).left
    assert entry.note == f"its forward is none that the adapter was written after (timm {timm.__version__})"


def test_a_tail_that_is_no_such_tail() -> None:
    model = timm_resnet("se", act_layer=nn.SiLU)
    report = triton_attn.fuse(model)
    assert not report.left
    assert not any(entry.tail for entry in report)
    assert "without its tail: what follows the addition is no plain ReLU but SiLU" in report[0].note
    assert type(model.layer1[0]) is timm.models.resnet.BasicBlock
    assert type(model.layer1[0].se) is FusedSEModule


def test_a_model_without_attention() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), triton_attn.SEBlock(8, 2), nn.MultiheadAttention(8, 2))
    report = triton_attn.fuse(model)
    assert report == []
    assert str(report) == "no attention that is known here"


def test_the_report_prints_as_a_table() -> None:
    model = nn.Sequential(SEModule(16), SEModule(16), kinds.NobodysSE(16))
    report = triton_attn.fuse(model)
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "class", "how,", "or", "why", "not"]
    assert lines[1].split() == ["0", "SEModule", "fused", "one", "op"]
    assert lines[3].split() == ["2", "NobodysSE", "left", "no", "adapter", "for", "it"]
    assert lines[-2:] == ["2 of 3 fused: 2 SEModule", "left: 1 NobodysSE: no adapter for it"]
    assert [entry.path for entry in report.fused] == ["0", "1"]


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        triton_attn.fuse({})


def test_an_adapter_of_ones_own(monkeypatch) -> None:
    monkeypatch.setattr(swap, "_fused", {**swap.known()})
    model = nn.Sequential(kinds.OwnSE(16))
    assert triton_attn.fuse(model) == [fusion.Entry("0", "OwnSE", False, "no adapter for it")]
    assert triton_attn.register_adapter(kinds.FusedOwnSE) is kinds.FusedOwnSE
    (entry,) = triton_attn.fuse(model)
    assert entry == fusion.Entry("0", "OwnSE", True, "one op")
    assert isinstance(model[0], kinds.OwnSE)


def test_adapters_that_are_none() -> None:
    class Local(fusion.Fused, kinds.OwnSE, by=fusion.Chain("down", "act", "up", "gate")):
        pass

    with pytest.raises(TypeError, match=r"fused must stand at the top of a module, .*<locals>.Local"):
        triton_attn.register_adapter(Local)
    with pytest.raises(TypeError, match=r"class made as `class Mine\(Fused, Theirs, by=recipe\)`, got <class.*OwnSE'>"):
        triton_attn.register_adapter(kinds.OwnSE)


def test_a_class_that_another_library_made_of_a_fused_one_stays() -> None:
    module = SEModule(16)
    triton_attn.fuse(module)
    module.__class__ = type("Sharded", (FusedSEModule,), {})
    x = torch.randn(2, 16, 3, 3)
    assert torch.equal(module(x), SEModule.forward(module, x))
    with pytest.raises(TypeError, match=r"is a Sharded, made of a fused class: unfuse before"):
        triton_attn.unfuse(nn.Sequential(module))


def bits(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients, with the same things dropped each time."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("name", [*SMALL, *FULL])
def test_on_a_cpu_not_a_bit_differs(name: str) -> None:
    model = {**SMALL, **FULL}[name]()
    fused, x = copy.deepcopy(model), torch.randn(2, 3, 48, 48)
    assert not triton_attn.fuse(fused).left
    for training in (True, False):
        for before, after in zip(bits(model.train(training), x), bits(fused.train(training), x), strict=True):
            assert torch.equal(before, after)
        assert all(torch.equal(*pair) for pair in zip(model.buffers(), fused.buffers(), strict=True))


def test_named_inputs_reach_the_plain_forward() -> None:
    module, x = SqueezeExcitation(16, 4), torch.randn(1, 16, 3, 3)
    expected = module(x)
    triton_attn.fuse(module)
    assert torch.equal(module(input=x), expected)


def test_explain_knows_fused_modules() -> None:
    model = timm_resnet("se")
    triton_attn.fuse(model)
    found = triton_attn.explain(model, torch.randn(1, 3, 32, 32))
    assert [(each.name, each.block, each.backend) for each in found] == [
        (f"layer{stage}.0", "FusedBasicBlock", "reference") for stage in range(1, 5)
    ]
    assert "cpu" in found[0].reason


@pytest.mark.parametrize(
    ("build", "most"),
    [(lambda: SEModule(16), 18), (lambda: timm.models.resnet.BasicBlock(16, 16, attn_layer=SEModule), 12)],
)
def test_what_the_check_at_every_call_costs(build, most: int) -> None:
    """In Python calls, which are what it is made of: an attention, and beside that a residual block around it."""
    module = build()
    triton_attn.fuse(module)
    by, calls = module.fused_by, []
    sys.setprofile(lambda _, event, __: calls.append(event) if event in ("call", "c_call") else None)
    try:
        by.obstacle(module)
        by.one_op(module) if hasattr(by, "one_op") else by._drops(module)
    finally:
        sys.setprofile(None)
    assert 0 < len(calls) <= most
