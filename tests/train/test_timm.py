"""``triton-attn train --model timm/NAME``: networks of timm, with attention behind the modules that patterns name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import triton_attn
from triton_attn.train import foreign
from triton_attn.train.checkpoint import load_model

timm = pytest.importorskip("timm")
Main = Callable[..., tuple[int, str, str]]
SMALL = ("--image-size", 32, "--batch-size", 8, "--workers", 0, "--epochs", 1)
NETWORK = (
    "--model",
    "timm/test_resnet",
    "--attention",
    "se",
    "--where",
    "layer[34]",
    "--attention-kwargs",
    "reduction=8",
)
HOSTS = ["layer3.0", "layer4.0"]


def test_it_trains_and_comes_back(pictures: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    output = tmp_path / "run"
    words = ("train", "--data", pictures, "--output", output, *NETWORK, *SMALL)
    status, out, said = triton_attn_main(*words)
    assert status == 0, said
    assert "of its own attention: 0 of 0 fused" in out
    model, card = load_model(output)
    assert card.model == "timm/test_resnet"
    assert type(model) is timm.models.resnet.ResNet
    assert sorted(triton_attn.remove(model)) == HOSTS
    status, out, said = triton_attn_main("eval", output, "--data", pictures)
    assert status == 0, said
    assert "top-1" in out
    status, _, said = triton_attn_main(
        "show", output, next(pictures.rglob("*.png")), "--output", tmp_path / "sheet.png"
    )
    assert status == 0, said
    status, _, said = triton_attn_main(*words, "--resume", "--epochs", 2)
    assert status == 0, said


def test_attention_changes_nothing_at_first_and_by_site() -> None:
    made = []
    for attention in (None, {"layer3": "se", "layer4.*": "eca"}):
        torch.manual_seed(0)
        made.append(foreign.build("timm/test_resnet", attention, ("stem",), {}, 3, 32).eval())
    plain, attended = made
    attended.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(plain(x), attended(x))
    assert isinstance(attended.layer3[0].attention, triton_attn.SEBlock)
    assert isinstance(attended.layer4[0].attention, triton_attn.ECABlock)


def test_weights_of_other_classes(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    source = foreign.build("timm/test_resnet", None, (), {}, 5, 32)
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, file)
    target = foreign.build("timm/test_resnet", "se", ("layer3",), {}, 3, 32)
    said = foreign.load(target, str(file))
    assert said == "they are for other classes than the data, so the last layer starts fresh"
    assert all(
        torch.equal(value, source.state_dict()[key])
        for key, value in target.state_dict().items()
        if ".attention." not in key and not key.startswith("fc.")
    )
    assert target.fc.out_features == 3
    again = foreign.build("timm/test_resnet", None, (), {}, 5, 32)
    assert foreign.load(again, str(file)) is None
    assert torch.equal(again.fc.weight, source.fc.weight)
    other = foreign.build("timm/test_byobnet", None, (), {}, 5, 32)
    with pytest.raises(ValueError, match=r"missing \[.*unexpected \[.*expected the weights of this network"):
        foreign.load(other, str(file))
    with pytest.raises(ValueError, match=r"timm's own weights are not downloaded"):
        foreign.load(other, "IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "timm/test_resnet5"), "timm has no model 'test_resnet5'; did you mean test_resnet"),
        (("--model", "timm/hf-hub:some/model"), "timm has no model 'hf-hub:some/model'"),
        (("--model", "timm/test_resnet", "--attention", "se"), "'stem' is the path of no module of ResNet"),
        (("--model", "timm/test_resnet", "--attention", "see", "--where", "layer3"), "unknown attention 'see'"),
        (("--model", "timm/test_resnet", "--attention", "se", "--where", "fc"), "what comes out of fc is no map"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], says: str, pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    status, _, said = triton_attn_main("train", "--data", pictures, "--output", tmp_path / "run", *words, *SMALL)
    assert status == 2
    assert says in said
    assert said.count("\n") == 1


def test_its_own_attention_is_served_and_its_last_layer_learns(
    pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    source = foreign.build("timm/test_byobnet", None, (), {}, 5, 32)
    weights = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, weights)
    words = ("--model", "timm/test_byobnet", "--weights", weights, "--freeze", "backbone", "--in-channels", 1)
    status, out, said = triton_attn_main(
        "train", "--data", pictures, "--output", tmp_path / "run", *words, *SMALL, "--grad-checkpointing"
    )
    assert status == 0, said
    assert "of its own attention: 4 of 4 fused: 4 SEModule" in out
    assert "the last layer starts fresh" in out
    before, after = source.state_dict(), load_model(tmp_path / "run" / "last.safetensors")[0].state_dict()
    first = "stem.conv.weight"
    torch.testing.assert_close(after[first], before[first].sum(1, keepdim=True))
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("head.") and key != first)
