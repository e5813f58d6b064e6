"""Options, their values and their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from triton_attn.cli import parse
from triton_attn.train.config import RECIPE, Config, load_config
from triton_attn.train.errors import UserError
from triton_attn.train.options import resolve

Main = Callable[..., tuple[int, str, str]]


def config_of(*words: str) -> Config:
    return resolve(parse(["train", "--output", "nowhere/run", *words]))[0]


def test_defaults() -> None:
    config = config_of()
    assert (config.model, config.attention, config.data, config.optimizer, config.lr) == (
        "resnet18",
        None,
        "digits",
        "adam",
        0.001,
    )
    assert (config.image_size, config.workers, config.weight_decay, config.warmup_epochs) == (48, 0, 0.0, 1.0)
    assert config_of("--optimizer", "adamw").weight_decay == 0.01
    assert config_of("--epochs", "1").warmup_epochs == 0.2
    assert config_of("--data", "somewhere").image_size == 224
    assert config_of("--image-size", "64").eval_image_size == 64
    off = ("none", 0.0, None, False, 1, 1.0)
    names = [name for name in RECIPE if name not in ("in_channels", "eval_image_size")]
    assert all(getattr(config, name) in off for name in names), "a recipe is off unless said"
    assert config_of("--ema").ema == 0.999
    assert config_of("--ema", "0.9").ema == 0.9


def test_attention_is_a_name_none_or_a_mapping() -> None:
    assert config_of("--attention", "se").attention == "se"
    assert config_of("--attention", "none").attention is None
    assert config_of("--attention", "layer3=nonlocal,block=se").attention == {"layer3": "nonlocal", "block": "se"}


@pytest.mark.parametrize("where", [["stem", "layer1"], ["stem,layer1"]])
def test_where_takes_several_sites(where: list[str]) -> None:
    assert config_of("--attention", "se", "--where", *where).where == ("stem", "layer1")


def test_attention_kwargs_are_typed() -> None:
    kwargs = config_of("--attention", "se", "--attention-kwargs", "reduction=8", "bias=false").attention_kwargs
    assert kwargs == {"reduction": 8, "bias": False}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--epochs", "0"], ["--epochs", "at least 1", "'0'"]),
        (["--epochs", "many"], ["--epochs", "'many'"]),
        (["--lr", "-1"], ["--lr", "above 0"]),
        (["--lr", "nan"], ["--lr", "above 0"]),
        (["--val-fraction", "1"], ["--val-fraction", "between 0 and 1"]),
        (["--amp", "int8"], ["--amp", "int8", "bf16"]),
        (["--optimizer", "adm"], ["--optimizer", "adm", "adamw"]),
        (["--attention", "stem="], ["--attention", "site=name", "stem="]),
        (["--attention-kwargs", "8"], ["--attention-kwargs", "KEY=VALUE", "'8'"]),
        (["--warmup-epochs", "3", "--epochs", "3"], ["--warmup-epochs", "--epochs 3", "got 3"]),
        (["--attention", "stem=se", "--where", "layer4"], ["--where", "--attention"]),
        (["--attention", "nonlokal"], ["attention 'nonlokal'", "did you mean 'nonlocal'"]),
        (["--attention", "se", "--where", "layer5"], ["site 'layer5'", "did you mean 'layer"]),
        (["--model", "resnet19"], ["model 'resnet19'", "did you mean 'resnet1"]),
        (["--attention", "se", "--attention-kwargs", "reduction=1000"], ["reduction=1000"]),
        (
            ["--attention", "se", "--attention-kwargs", "ratio=8"],
            ["--attention-kwargs: se has no argument 'ratio'", "(it has reduction, "],
        ),
        (
            ["--attention", "stem=se,block=eca", "--attention-kwargs", "reduction=8"],
            ["--attention-kwargs: eca has no argument 'reduction'"],
        ),
        (["--where", "layer4"], ["--where: there is no attention; expected --attention beside it"]),
        (["--attention", "none", "--attention-kwargs", "a=1"], ["--attention-kwargs: there is no attention"]),
        (["--attention-lr", "0.1"], ["--attention-lr: there is no attention"]),
        (["--freeze", "backbone"], ["--freeze", "expected --weights"]),
        (["--in-channels", "2"], ["--in-channels", "2"]),
        (["--in-channels", "4", "--auto-augment", "augmix"], ["--auto-augment", "--in-channels 1 or 3", "got 4"]),
        (["--grad-checkpointing", "--compile"], ["--grad-checkpointing", "--compile"]),
        (["--ema", "1"], ["--ema", "below 1", "'1'"]),
        (["--label-smoothing", "1"], ["--label-smoothing", "below 1"]),
        (["--weights", "nowhere.pth"], ["--weights nowhere.pth"]),
        (["--amp", "fp16"], ["--amp", "fp16", "GPU"]),
    ],
)
def test_wrong_values_are_refused(
    words: list[str], expected: list[str], tmp_path: Path, triton_attn_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    status, _, error = triton_attn_main("train", "--output", tmp_path / "run", *words)
    assert status == 2
    line = error.strip().splitlines()[-1]
    for part in expected:
        assert part in line, line
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_the_configuration_comes_back_as_it_was(tmp_path: Path) -> None:
    config = Config(output=str(tmp_path), attention={"block": "se"}, attention_kwargs={"reduction": 4}).resolved()
    config.save({"classes": ["0", "é"]})
    assert load_config(tmp_path) == (config, {"classes": ["0", "é"]})
    text = (tmp_path / "config.yaml").read_text()
    assert "torchvision:" in text, "versions are in it"


@pytest.mark.parametrize("text", ["", "options: 3", "{", "options: {colour: red}\ndataset: {}"])
def test_a_foreign_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        load_config(tmp_path)


def test_an_unwritable_folder_is_found_before_training(tmp_path: Path, triton_attn_main: Main) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "run", Path("/proc/nowhere/run")):
        status, out, error = triton_attn_main("train", "--output", output)
        assert status == 2
        assert "--output" in error
        assert str(output) in error
        assert out == ""
