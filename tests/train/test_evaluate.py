"""``triton-attn eval``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_folders import make_folder
from PIL import Image

from triton_attn.train.checkpoint import Card, load_model, save_model
from triton_attn.train.data import load_images
from triton_attn.train.transforms import eval_transform

Main = Callable[..., tuple[int, str, str]]
CARD = Card("resnet18", "eca", ("stem",), {}, 2, ("cat", "dog"), 16, epoch=3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "run" / "best.safetensors"
    path.parent.mkdir()
    save_model(path, CARD.build().state_dict(), CARD)
    return path


def test_it_counts_what_the_network_gets_right(checkpoint: Path, pictures: Path, triton_attn_main: Main) -> None:
    status, out, error = triton_attn_main("eval", checkpoint, "--data", pictures, "--split", "all", "--batch-size", 8)
    assert status == 0, error
    model, card = load_model(checkpoint)
    images = load_images(str(pictures))
    samples = [(path, label) for path, label in (*images.train, *images.val) if isinstance(path, Path)]
    look = eval_transform(16, card.mean, card.std)
    with torch.no_grad():
        logits = model(torch.stack([look(Image.open(path)) for path, _ in samples]))
    labels = torch.tensor([label for _, label in samples])
    right = (logits.argmax(1) == labels).float().mean().item()
    # Thirty images in batches of eight: every image counts the same, whatever its batch.
    loss = float(re.search(r"loss ([\d.]+)", out)[1])  # type: ignore[index]
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=2e-4)
    assert f"top-1 {100 * right:.2f} %   loss" in out
    assert "top-5" not in out, "of two classes five are no news"
    assert "on all 30 images" in out
    assert Image.open(checkpoint.with_name("confusion.png")).width > 300


def test_json_has_every_class(tmp_path: Path, triton_attn_main: Main) -> None:
    torch.manual_seed(0)
    data = make_folder(tmp_path / "data", {"ape": 4, "bee": 5, "cow": 6})
    card = dataclasses.replace(CARD, num_classes=4, classes=("none", "cow", "bee", "ape"))
    save_model(tmp_path / "best.safetensors", card.build().state_dict(), card)
    words = ("eval", tmp_path / "best.safetensors", "--data", data, "--split", "all", "--json")
    status, out, error = triton_attn_main(*words)
    assert status == 0, error
    found = json.loads(out)
    counts = torch.tensor(found["confusion"])
    assert counts.sum(1).tolist() == [0, 6, 5, 4]
    assert found["top_1"] == pytest.approx((counts.diagonal().sum() / 15).item())
    assert (found["images"], found["split"], found["epoch"]) == (15, "all", 3)
    assert [each["name"] for each in found["classes"]] == ["none", "cow", "bee", "ape"]
    for index, each in enumerate(found["classes"]):
        right, said, there = counts[index, index].item(), counts[:, index].sum().item(), counts[index].sum().item()
        assert each["images"] == there
        assert each["precision"] == pytest.approx(right / said if said else 0)
        assert each["recall"] == pytest.approx(right / there if there else 0)
        assert each["f1"] == pytest.approx(2 * right / (said + there) if said + there else 0)
    assert counts.diagonal().sum() > 0, "else all of these are zero"


def test_classes_go_by_name(checkpoint: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    make_folder(tmp_path / "a", {"cat": 4, "dog": 4})
    (tmp_path / "a").rename(tmp_path / "b")
    save_model(checkpoint, load_model(checkpoint)[0].state_dict(), dataclasses.replace(CARD, classes=("dog", "cat")))
    _, swapped, _ = triton_attn_main("eval", checkpoint, "--data", tmp_path / "b", "--split", "all")
    save_model(checkpoint, load_model(checkpoint)[0].state_dict(), CARD)
    _, straight, _ = triton_attn_main("eval", checkpoint, "--data", tmp_path / "b", "--split", "all")
    rates = [float(re.search(r"top-1 ([\d.]+)", text)[1]) for text in (swapped, straight)]  # type: ignore[index]
    assert rates[0] + rates[1] == pytest.approx(100)


@pytest.mark.parametrize("output", ["pictures/mine.png", "pictures", None])
def test_the_picture_goes_where_it_is_wanted(
    output: str | None, checkpoint: Path, pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    words = [] if output is None else ["--output", tmp_path / "new" / output]
    status, out, error = triton_attn_main("eval", checkpoint.parent, "--data", pictures, *words)
    assert status == 0, error
    assert "6 held-out images" in out
    expected = {
        "pictures/mine.png": tmp_path / "new" / "pictures" / "mine.png",
        "pictures": tmp_path / "new" / "pictures" / "confusion.png",
        None: checkpoint.with_name("confusion.png"),
    }[output]
    assert expected.is_file()
    assert f"confusion matrix: {expected}" in out


def test_errors_name_what_is_wrong(checkpoint: Path, pictures: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    (tmp_path / "short.safetensors").write_bytes(checkpoint.read_bytes()[:5000])
    (tmp_path / "file").write_text("")
    other = make_folder(tmp_path / "other", {"cat": 3, "cow": 3})
    for words, expected in [
        ((tmp_path / "nowhere",), "nowhere: no such file"),
        ((tmp_path / "short.safetensors",), "short.safetensors: cannot be read"),
        ((checkpoint, "--data", tmp_path / "gone"), "--data:"),
        ((checkpoint, "--data", other), "classes that the checkpoint does not know: cow"),
        ((checkpoint, "--data", "digits"), "classes that the checkpoint does not know: 0, 1"),
        ((checkpoint, "--data", pictures, "--output", tmp_path / "file" / "x.png"), "--output: cannot write into"),
        ((checkpoint, "--data", pictures, "--output", "matrix.svg"), "expected a .png file or a folder"),
    ]:
        status, _, error = triton_attn_main("eval", *words)
        assert status == 2
        assert expected in error
        assert error.count("\n") == 1
