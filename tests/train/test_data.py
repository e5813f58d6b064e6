"""The images, their transforms, and the order in which they come."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import make_folder
from PIL import Image
from torch import Tensor

from triton_attn.train.data import ImageSet, digit_images, load_images, train_loader
from triton_attn.train.errors import UserError
from triton_attn.train.folder import Sample
from triton_attn.train.transforms import eval_transform, train_transform

HALF = (0.5, 0.5, 0.5)


def test_digits_are_real_and_split_by_class() -> None:
    images = load_images("digits")
    assert len(images.train) + len(images.val) == 1797
    assert 0.19 < len(images.val) / 1797 < 0.21
    counts = [np.bincount([label for _, label in part], minlength=10) for part in (images.train, images.val)]
    share = counts[1] / (counts[0] + counts[1])
    assert share.min() > 0.19
    assert share.max() < 0.21
    pixels = {np.asarray(image).tobytes() + bytes([label]) for image, label in digit_images()}
    held_out = {np.asarray(image).tobytes() + bytes([label]) for image, label in images.val}
    assert held_out <= pixels
    again = {np.asarray(image).tobytes() + bytes([label]) for image, label in load_images("digits").val}
    assert again == held_out


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_any_picture_becomes_a_normalised_square(mode: str) -> None:
    picture = Image.new("RGB", (40, 24), (255, 255, 255)).convert(mode)
    x = eval_transform(16, HALF, HALF)(picture)
    assert x.shape == (3, 16, 16)
    assert x.dtype == torch.float32
    assert torch.allclose(x, torch.ones(()))


def test_digits_are_not_flipped() -> None:
    left = Image.fromarray(np.array([[255] * 4 + [0] * 4] * 8, dtype=np.uint8))
    transform = train_transform("digits", 32, HALF, HALF)
    for _ in range(40):
        x = transform(left)
        assert x[..., :16].mean() > x[..., 16:].mean()
    flip = train_transform("folder", 32, HALF, HALF)
    sides = {bool(x[..., :16].mean() > x[..., 16:].mean()) for x in (flip(left) for _ in range(40))}
    assert sides == {True, False}


def batches(images: Sequence[Sample], epoch: int, workers: int) -> list[Tensor]:
    dataset = ImageSet(images, train_transform("folder", 16, HALF, HALF))
    loader = train_loader(dataset, 8, workers, seed=5)
    loader.sampler.epoch = epoch  # type: ignore[attr-defined]
    torch.rand(epoch + workers)  # what was drawn before makes no difference
    return [x for x, _ in loader]


def test_an_epoch_is_the_same_whatever_the_workers(pictures: Path) -> None:
    images = load_images(str(pictures)).train
    alone, helped = batches(images, 1, 0), batches(images, 1, 2)
    assert len(alone) == 3
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert not torch.equal(alone[0], batches(images, 2, 0)[0])


def test_a_short_last_batch_is_dropped_unless_it_is_all(pictures: Path) -> None:
    dataset = ImageSet(load_images(str(pictures)).train, train_transform("folder", 16, HALF, HALF))
    assert [len(x) for x, _ in train_loader(dataset, 10, 0, seed=0)] == [10, 10]
    assert [len(x) for x, _ in train_loader(dataset, 100, 0, seed=0)] == [24]


def test_folders_with_train_and_val(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    make_folder(tmp_path / "val", {"dog": 1})
    images = load_images(str(tmp_path))
    assert images.classes == ("cat", "dog")
    assert [label for _, label in images.train] == [0, 0, 0, 1, 1]
    assert [label for _, label in images.val] == [1]


def test_class_folders_are_split_the_same_way_every_time(pictures: Path) -> None:
    one, two = load_images(str(pictures), 0.2), load_images(str(pictures), 0.2)
    assert one == two
    assert [label for _, label in one.val] == [0, 0, 0, 1, 1, 1]
    assert not {path for path, _ in one.train} & {path for path, _ in one.val}


def refused(data: Path) -> str:
    with pytest.raises(UserError) as error:
        load_images(str(data))
    assert str(error.value).startswith("--data: ")
    return str(error.value)


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/nowhere does not exist; expected digits or a folder" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file is a file" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty holds no class folders" in refused(tmp_path / "empty")
    assert "one class (cat), expected at least 2" in refused(make_folder(tmp_path / "one", {"cat": 2}))
    two = make_folder(tmp_path / "two", {"cat": 2})
    (two / "dog").mkdir()
    assert f"{two}/dog holds no images" in refused(two)
    assert "class cat has one image" in refused(make_folder(tmp_path / "few", {"cat": 1, "dog": 3}))
    half = tmp_path / "half"
    make_folder(half / "train", {"cat": 2, "dog": 2})
    assert "has train/ but no val/" in refused(half)
    make_folder(half / "val", {"cat": 2, "cow": 2})
    assert "cow" in refused(half)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_few_broken_images_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, {"cat": 100, "dog": 100}, size=8)
    truncate(tmp_path / "cat" / "007.png")
    (tmp_path / "dog" / "042.png").write_text("no picture")
    images = load_images(str(tmp_path), progress=True)
    assert sorted(path.name for path in images.skipped) == ["007.png", "042.png"]
    assert len(images.train) + len(images.val) == 198
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 2
    assert str(tmp_path / "cat" / "007.png") in warnings[0]
    assert "not an image" in warnings[1]


def test_many_broken_images_are_an_error_that_names_them(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 10, "dog": 10}, size=8)
    truncate(tmp_path / "cat" / "007.png")
    text = refused(tmp_path)
    assert "1 of the 20 images" in text
    assert "at most 1 %" in text
    assert str(tmp_path / "cat" / "007.png") in text


def test_a_truncated_jpeg_is_found(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8))
    file = io.BytesIO()
    noise.save(file, "JPEG")
    (tmp_path / "cat" / "x.jpg").write_bytes(file.getvalue()[:-2000])
    assert "x.jpg (image file is truncated" in refused(tmp_path)


def test_other_files_do_not_matter(pictures: Path) -> None:
    (pictures / "cat" / "notes.txt").write_text("no picture")
    (pictures / ".cache").mkdir()
    shutil.copy(pictures / "cat" / "000.png", pictures / "cat" / "._000.png")
    assert len(load_images(str(pictures)).train) == 24
