"""``triton-attn predict``: a table of what a checkpoint takes images for, labelled or not."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from triton_attn.train.checkpoint import Card, load_model, save_model
from triton_attn.train.transforms import eval_transform

Main = Callable[..., tuple[int, str, str]]
CARD = Card("resnet18", "eca", ("stem",), {}, 2, ("cat", "name"), 16, eval_image_size=24, crop_fraction=0.8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("predict") / "best.safetensors"
    save_model(path, CARD.build().state_dict(), CARD)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_images_at_any_depth_get_a_class_and_probabilities(
    checkpoint: Path, shared_pictures: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    folder = tmp_path / "unlabelled"
    (folder / "deep").mkdir(parents=True)
    names = ["000.png", "deep/001.png", "deep/002.png", "deep/a,\nb.png", "deep/\udce9.png"]
    for index, name in enumerate(names):
        shutil.copy(shared_pictures / "cat" / f"{index:03}.png", folder / name)
    (folder / "broken.png").write_text("no picture")
    single = shared_pictures / "dog" / "003.png"
    output = tmp_path / "new" / "table.csv"
    words = ("predict", checkpoint, folder, single, "--output", output, "--batch-size", 2)
    status, out, error = triton_attn_main(*words)
    assert status == 0, error
    assert error.count("\n") == 1
    assert f"warning: {folder}/broken.png is left out: it cannot be read (not an image)" in error
    assert f"{output}: 6 images, " in out
    found = table(output)
    assert [row["name"] for row in found] == [*names[:4], "deep/\\udce9.png", str(single)]
    model, card = load_model(checkpoint)
    look = eval_transform(24, card.mean, card.std, 0.8)
    with torch.no_grad():
        images = [look(Image.open(path)) for path in (*(folder / name for name in names), single)]
        expected = torch.softmax(model(torch.stack(images)), 1)
    for row, probabilities in zip(found, expected, strict=True):
        given = [float(row["p(cat)"]), float(row["p(name)"])]
        assert given == pytest.approx(probabilities.tolist(), abs=1e-5)
        assert row["class"] == CARD.classes[int(probabilities.argmax())]


def test_what_is_refused(checkpoint: Path, tmp_path: Path, triton_attn_main: Main) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no picture")
    (tmp_path / "file.txt").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for words, expected in [
        ((tmp_path / "nowhere", tmp_path), "CHECKPOINT: "),
        ((checkpoint, tmp_path / "nowhere"), "IMAGE: " + str(tmp_path / "nowhere") + ": no such file"),
        ((checkpoint, tmp_path / "empty"), f"IMAGE: {tmp_path}/empty holds no images; expected files ending in"),
        ((checkpoint, tmp_path / "broken"), "IMAGE: none of 1 images can be read"),
        ((checkpoint, tmp_path, "--output", tmp_path), f"--output: {tmp_path} is a folder"),
        ((checkpoint, ""), "IMAGE: expected a text"),
    ]:
        target = () if "--output" in words else ("--output", tmp_path / "x.csv")
        status, out, error = triton_attn_main("predict", *words, *target)
        assert status == 2
        assert out == ""
        assert expected in error
        assert sorted(tmp_path.rglob("*")) == before
