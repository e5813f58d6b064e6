"""Weights files that describe themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import triton_attn
from triton_attn.train.checkpoint import Card, load_model, save_model

CARD = Card(
    model="resnet18",
    attention={"layer3": "nonlocal", "block": "se"},
    where=("stem", "layer4"),
    attention_kwargs={},
    num_classes=3,
    classes=("cat", "dog", "Öl"),
    image_size=32,
    epoch=4,
    val_accuracy=0.5,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_model(path, CARD.build().state_dict(), CARD)
    return path


def test_a_network_comes_back_with_its_card(tmp_path: Path) -> None:
    model = CARD.build()
    path = tmp_path / "best.safetensors"
    save_model(path, model.state_dict(), CARD)
    loaded, card = load_model(path)
    assert card == CARD
    assert not loaded.training
    assert isinstance(loaded.layer1[0].attention, triton_attn.SEBlock), "the fast blocks"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model.eval()(x))
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_checkpoint_with_the_keys_of_earlier_versions(tmp_path: Path) -> None:
    state = CARD.build().state_dict()
    earlier = {key.replace("layer3.attention.", "attention.layer3."): value for key, value in state.items()}
    assert earlier.keys() != state.keys()
    save_model(tmp_path / "best.safetensors", earlier, CARD)
    loaded, _ = load_model(tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_run_folder_stands_for_its_best_else_its_last(saved: Path) -> None:
    save_model(saved.with_name("last.safetensors"), CARD.build().state_dict(), dataclasses.replace(CARD, epoch=9))
    assert load_model(saved.parent)[1].epoch == 4
    saved.unlink()
    assert load_model(str(saved.parent))[1].epoch == 9


def test_any_reader_of_safetensors_sees_the_card(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        assert '"classes": ["cat", "dog", "Öl"]' in file.metadata()["triton_attn"]


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_a_truncated_file_is_named(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"best\.safetensors: cannot be read .*expected a \.safetensors file"):
        load_model(saved)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors: not a checkpoint of triton-attn"):
        load_model(path)
    save_file({"fc.weight": torch.zeros(2)}, path, metadata={"triton_attn": '{"model": "resnet18"}'})
    with pytest.raises(ValueError, match=r"foreign\.safetensors: not a checkpoint of triton-attn"):
        load_model(path)
    save_file({"fc.weight": torch.zeros(2)}, path, metadata=CARD.to_metadata())
    with pytest.raises(ValueError, match=r"foreign\.safetensors: its weights do not fit"):
        load_model(path)
    save_file({"x": torch.zeros(2)}, path, metadata=dataclasses.replace(CARD, model="resnet19").to_metadata())
    with pytest.raises(ValueError, match=r"foreign\.safetensors: unknown model 'resnet19'"):
        load_model(path)


def test_a_missing_file_or_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_model(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"no best\.safetensors"):
        load_model(tmp_path)
