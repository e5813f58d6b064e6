"""What a configuration and a card may hold."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from triton_attn.train.checkpoint import Card, load_model, save_model
from triton_attn.train.config import OPTIONS, RECIPE, Config, load_config
from triton_attn.train.errors import UserError
from triton_attn.train.rules import brief, check_fields, number, sequence, whole

Main = Callable[..., tuple[int, str, str]]
CARD = Card("resnet18", "se", ("stem",), {"reduction": 8}, 3, ("cat", "dog", "Öl"), 32, epoch=4, val_accuracy=0.5)
DATASET = {"train_images": 4, "val_images": 2, "classes": ["cat", "dog"], "files": {"cat": ["0", "1"]}}

NONSENSE: list[Any] = [
    -1,
    0.5,
    True,
    None,
    "evil",
    "",
    [],
    [[]],
    {},
    {"a": {}},
    10**30,
    float("nan"),
    float("inf"),
    "\0",
]
FITS: dict[str, list[Any]] = {
    "model": ["evil"],
    "attention": [None, "evil", {}],
    "where": [[]],
    "attention_kwargs": [{}],
    "classes": [],
    "weights": [None, "evil"],
    "data": ["evil"],
    "val_fraction": [0.5],
    "check_images": [True],
    "lr": [0.5],
    "weight_decay": [0.5],
    "warmup_epochs": [0.5],
    "channels_last": [True],
    "compile": [True],
    "crop_fraction": [0.5],
    "train_fraction": [0.5],
    "random_erasing": [0.5],
    "mixup": [0.5],
    "cutmix": [0.5],
    "label_smoothing": [0.5],
    "attention_lr": [None, 0.5],
    "decay_norms": [True],
    "clip_grad": [None, 0.5],
    "ema": [None, 0.5],
    "early_stop": [None],
    "grad_checkpointing": [True],
    "val_accuracy": [0.5, True][:1],
    "mean": [],
    "std": [],
}
"""Which of these a field takes: what it names is checked when the network is built, or the data are read."""


def fits(name: str, value: Any) -> bool:
    return any(type(value) is type(each) and value == each for each in FITS.get(name, []))


def config_file(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    Config(output=str(folder), attention="se").resolved().save(DATASET)
    path = folder / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    change(stored)
    path.write_text(yaml.safe_dump(stored))
    return path


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_config(folder)
    assert str(error.value).startswith(f"{folder}/config.yaml: cannot be read")
    assert len(str(error.value)) < 700
    return str(error.value)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_checked(name: str) -> None:
    for value in NONSENSE:
        if fits(name, value):
            OPTIONS[name](value)
        else:
            with pytest.raises(ValueError, match=r"^expected "):
                OPTIONS[name](value)


def test_a_configuration_is_checked_option_by_option(tmp_path: Path) -> None:
    """By the rules above, of which one stands for all: reading YAML takes long."""
    config_file(tmp_path, lambda stored: stored["options"].update(lr="evil"))
    assert "lr: expected" in refused(tmp_path)
    for name in ("seed", "ema"):
        config_file(tmp_path, lambda stored, name=name: stored["options"].pop(name))  # type: ignore[misc]
        assert f"lacks '{name}'" in refused(tmp_path)


def test_configurations_of_earlier_versions_are_read(tmp_path: Path) -> None:
    def older(stored: dict[str, Any]) -> None:
        stored["version"] = 2
        for name in RECIPE:
            del stored["options"][name]

    config_file(tmp_path, older)
    config, _ = load_config(tmp_path)
    assert (config.eval_image_size, config.ema, config.accumulate) == (48, None, 1)
    assert config.decay_norms, "as the run has begun"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda stored: stored.update(version=99), "expected one of 1, 2, 3, got 99"),
        (lambda stored: stored["options"].update(optimizer="evil"), "optimizer: expected one of adam, adamw, sgd"),
        (lambda stored: stored["options"].update(image_size=100000), "image_size: expected"),
        (lambda stored: stored["options"].update(epochs=1, warmup_epochs=1.0), "--warmup-epochs: expected less"),
        (lambda stored: stored["options"].update(evil=1), "has unknown 'evil'"),
        (lambda stored: stored["options"].update(attention_kwargs={"reduction": 10**9}), "attention_kwargs: expected"),
        (lambda stored: stored["dataset"].update(classes=["a", "a"]), "nothing is twice"),
        (lambda stored: stored["dataset"].update(train_images="many"), "train_images: expected an integer"),
        (lambda stored: stored["dataset"].update(files={"cat": ["x"]}), "files: expected"),
        (lambda stored: stored.pop("options"), "KeyError"),
    ],
)
def test_configurations_that_are_refused(
    change: Callable[[dict[str, Any]], object], expected: str, tmp_path: Path
) -> None:
    config_file(tmp_path, change)
    assert expected in refused(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 5_000,  # five times what Python recurses
        "!!python/object/apply:os.mkdir [executed]",
        "a: &a [x, x]\nb: &b [*a, *a]\noptions: {epochs: [*b, *b, *b, *b]}",
        "options: &o {options: *o}\ndataset: *o",
        "\xff\xfe",
        "options: 2001-01-01",
    ],
)
def test_yaml_that_is_no_configuration(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_configuration_of_the_first_version_is_read(tmp_path: Path) -> None:
    def old(stored: dict[str, Any]) -> None:
        del stored["version"], stored["options"]["schedule_from"], stored["dataset"]["files"]

    config_file(tmp_path, old)
    config, dataset = load_config(tmp_path)
    assert config == Config(output=str(tmp_path), attention="se").resolved()
    assert "files" not in dataset


def test_an_unknown_model_in_a_configuration_is_one_line(trained: Path, triton_attn_main: Main) -> None:
    stored = trained / "config.yaml"
    stored.write_text(stored.read_text().replace("resnet18", "evil"))
    status, _, error = triton_attn_main("train", "--output", trained, "--resume", "--epochs", 3)
    assert status == 2
    assert "unknown model 'evil'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Card)])
def test_every_field_of_a_card_is_checked(name: str) -> None:
    whole_card = json.loads(CARD.to_metadata()["triton_attn"])
    assert Card.from_metadata({"triton_attn": json.dumps(whole_card)}) == CARD
    for value in NONSENSE:
        fields = copy.deepcopy(whole_card) | {name: value}
        if not fits(name, value):
            with pytest.raises(ValueError, match=f"{name}: expected|of version"):
                Card.from_metadata({"triton_attn": json.dumps(fields)})
    del whole_card[name]
    with pytest.raises(ValueError, match=f"lacks '{name}'|of version None"):
        Card.from_metadata({"triton_attn": json.dumps(whole_card)})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 99}, "its card is of version 99, expected 1 or 2"),
        ({"num_classes": 10**12}, "num_classes"),
        ({"classes": ["cat", "cat", "dog"]}, "nothing is twice"),
        ({"image_size": 100_000}, "image_size"),
        ({"std": [1.0, 0.0, 1.0]}, "std"),
        ({"attention": {"nowhere": "se"}}, "nowhere"),
        ({"attention_kwargs": {"reduction": 10**9}}, "attention_kwargs"),
        ({"attention_kwargs": {"reduction": 0}}, "reduction"),
        ({"attention_kwargs": {"__class__": "evil"}}, "__class__"),
    ],
)
def test_cards_that_are_refused(change: dict[str, Any], expected: str, tmp_path: Path, triton_attn_main: Main) -> None:
    path = tmp_path / "best.safetensors"
    fields = json.loads(CARD.to_metadata()["triton_attn"]) | change
    save_file({"x": torch.zeros(1)}, path, metadata={"triton_attn": json.dumps(fields)})
    for words in (("eval", path, "--output", tmp_path), ("show", path, "digits:1", "--output", tmp_path / "a.png")):
        status, _, error = triton_attn_main(*words)
        assert status == 2
        assert error.count("\n") == 1
        assert str(path) in error
        assert expected in error


@pytest.mark.parametrize("metadata", ["[" * 100_000, "3", "null", '"text"', "[]", '{"version": 1}'])
def test_metadata_that_are_no_card(metadata: str) -> None:
    with pytest.raises(ValueError, match=r"expected|nested|lacks"):
        Card.from_metadata({"triton_attn": metadata})


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda x: x * float("nan"), "not finite: conv1.weight"),
        (lambda x: x / 0, "not finite: conv1.weight"),
        (lambda x: x.to(torch.complex64), "of another kind of number: conv1.weight"),
        (lambda x: x.to(torch.int64), "of another kind of number: conv1.weight"),
        (lambda x: x[:1], "of another shape: conv1.weight"),
    ],
)
def test_weights_that_are_no_weights(
    spoil: Callable[[torch.Tensor], torch.Tensor], expected: str, tmp_path: Path, triton_attn_main: Main
) -> None:
    path = tmp_path / "best.safetensors"
    state = CARD.build().state_dict()
    save_model(path, state | {"conv1.weight": spoil(state["conv1.weight"])}, CARD)
    with pytest.raises(UserError, match=rf"best\.safetensors: its weights do not fit .*{expected}"):
        load_model(path)
    words = ("--attention", "se", "--where", "stem", "--attention-kwargs", "reduction=8", "--weights", path)
    status, _, error = triton_attn_main("train", "--output", tmp_path / "run", "--image-size", 16, *words)
    assert status == 2
    assert f"--weights {path}: " in error
    assert "conv1.weight" in error
    assert not (tmp_path / "run").exists()


def test_half_precision_weights_are_weights(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in CARD.build().state_dict().items()
    }
    save_model(path, state, CARD)
    assert load_model(path)[0].conv1.weight.dtype == torch.float32


def test_class_names_of_any_bytes_come_back(tmp_path: Path) -> None:
    names = ("caf\udce9", "猫", "a\nb$")
    card = dataclasses.replace(CARD, classes=names)
    save_model(tmp_path / "x.safetensors", card.build().state_dict(), card)
    assert load_model(tmp_path / "x.safetensors")[1] == card
    config = Config(output=str(tmp_path)).resolved()
    config.save({"classes": list(names)})
    assert load_config(tmp_path)[1] == {"classes": list(names)}


def test_rules_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"a: expected an integer of at least 1 and at most 3, got 4"):
        check_fields({"a": 4}, {"a": whole(1, 3)})
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number above 0, got 'x'"):
        number("a number above 0", lambda value: value > 0).words(float)("x")
    assert check_fields({"a": [1, 2]}, {"a": sequence(whole(1))}) == {"a": (1, 2)}
    assert len(brief("x" * 10_000)) < 100
    assert brief(16**10_000) == "a very large int"
