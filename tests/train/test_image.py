"""Images as they were meant: upright, of eight bits, the first frame; broken and huge ones are named."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import make_folder
from PIL import Image

from triton_attn.train.data import ImageSet
from triton_attn.train.image import BrokenImage, read_image, why_broken
from triton_attn.train.show import open_image
from triton_attn.train.transforms import eval_transform, train_transform

Main = Callable[..., tuple[int, str, str]]
HALF = (0.5, 0.5, 0.5)
RAMP = np.linspace(0, 1, 256)[None].repeat(4, 0)


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("suffix", "array"),
    [
        ("png", (RAMP * 65535).astype(np.uint16)),
        ("tif", (RAMP * 65535).astype(np.uint16)),
        ("tif", (RAMP * 65535).astype(">u2")),
        ("pgm", (RAMP * 65535).astype(np.uint16)),
        ("tif", (RAMP * 65535).astype(np.int32)),
        ("tif", (RAMP * (2**31 - 1)).astype(np.int32)),
        ("tif", RAMP.astype(np.float32)),
        ("tif", (RAMP * 255).astype(np.float32)),
        ("tif", (RAMP * 65535).astype(np.float32)),
    ],
)
def test_a_ramp_of_any_depth_keeps_its_levels(suffix: str, array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"ramp.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 256 4 65535\n" + array.astype(">u2").tobytes())
    else:
        Image.fromarray(array).save(path)
    found = pixels(path)
    assert np.abs(found[..., 0].astype(int) - np.round(RAMP * 255)).max() <= 1
    assert len(np.unique(found)) >= 250
    assert np.array_equal(found[..., 0], found[..., 2])


def test_a_dark_image_of_sixteen_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 2570).astype(np.uint16)).save(tmp_path / "dark.png")
    assert pixels(tmp_path / "dark.png").max() == 10


def test_values_that_are_not_finite_are_black(tmp_path: Path) -> None:
    array = RAMP.astype(np.float32)
    array[0, 200], array[1, 200], array[2, 200] = float("nan"), float("inf"), -3
    Image.fromarray(array).save(tmp_path / "x.tif")
    assert pixels(tmp_path / "x.tif")[:3, 200].max() == 0
    assert pixels(tmp_path / "x.tif")[3, 200, 0] == 200


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(suffix: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste("red", (0, 0, 32, 16))  # the upper left quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"photo.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    found = pixels(path)
    assert found.shape == (32, 64, 3)
    assert found[8, 16, 0] > 200
    assert found[[8, 24, 24], [48, 16, 48]].max() < 60
    assert np.asarray(open_image(str(path))[0]).tobytes() == found.tobytes()


def test_odd_exif_data_do_no_harm(tmp_path: Path) -> None:
    for index, exif in enumerate([b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"", b"\xff" * 50]):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{index}.jpg", exif=exif)
        assert pixels(tmp_path / f"{index}.jpg").shape == (8, 8, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    path = tmp_path / f"moving.{suffix}"
    more = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **more)
    assert np.abs(pixels(path).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_as_pillow_has_them(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)).convert(mode)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    image.save(path)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(pixels(path), expected)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (3, 9000)])
def test_a_thin_image_is_not_blown_up(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", size, "white")
    largest = 0
    real = Image.Image.resize

    def resize(self: Image.Image, to: tuple[int, int], *how: object, **more: object) -> Image.Image:
        nonlocal largest
        largest = max(largest, to[0] * to[1])
        return real(self, to, *how, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", resize)
    for transform in (eval_transform(64, HALF, HALF), train_transform("folder", 64, HALF, HALF)):
        x = transform(image)
        assert x.shape == (3, 64, 64)
        assert torch.allclose(x, torch.ones(()))
    assert 0 < largest <= 64 * 64 * 8


def test_usual_shapes_are_resized_as_they_were() -> None:
    from torchvision.transforms import v2

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 300, 3)).astype(np.uint8))
    plain = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    assert torch.equal(eval_transform(32, (0, 0, 0), (1, 1, 1))(image), plain(image))


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compressobj(1)
    rows = b"".join(packed.compress(b"\0" * (width + 1)) for _ in range(height)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_huge_image_is_read_or_named(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_of(10_000, 10_000))
    (tmp_path / "huge.png").write_bytes(png_of(13_750, 13_750))  # 189 million pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "large.png").size == (10_000, 10_000)
        with pytest.raises(BrokenImage, match=r"huge\.png: cannot be read as an image \(.*189062500 pixels"):
            read_image(tmp_path / "huge.png")


def test_what_is_no_image_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("link.png")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(png_of(100, 100)[:60])
    for path in sorted(tmp_path.iterdir()):
        assert why_broken(path)
        with pytest.raises(BrokenImage, match=rf"{path.name}: cannot be read as an image \("):
            read_image(path)


def test_postscript_is_not_handed_to_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program is started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    assert why_broken(tmp_path / "x.png") == "not an image"
    with pytest.raises(BrokenImage, match="not an image"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_without_the_check(workers: int, tmp_path: Path, triton_attn_main: Main) -> None:
    data = make_folder(tmp_path / "data", {"cat": 6, "dog": 6})
    for path in data.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    words = ("--image-size", 16, "--batch-size", 4, "--epochs", 1, "--workers", workers, "--no-check-images")
    status, _, error = triton_attn_main("train", "--data", data, "--output", tmp_path / "run", *words)
    assert status == 2
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert f"{data}/" in error
    assert ".png: cannot be read as an image (" in error


def test_the_error_survives_its_way_out_of_a_worker() -> None:
    error = BrokenImage("/data/x.png: cannot be read as an image (cut)")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(BrokenImage(f"Caught BrokenImage in worker 0.\n  File …\na.b.BrokenImage: {error}\n")) == str(error)


def test_training_evaluation_and_show_read_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "x.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3)).astype(np.uint8)).save(path, exif=exif)
    (from_set, _) = ImageSet([(path, 0)], eval_transform(16, HALF, HALF))[0]
    assert torch.equal(from_set, eval_transform(16, HALF, HALF)(open_image(str(path))[0]))
    file = io.BytesIO()
    read_image(path).save(file, "PNG")
    assert Image.open(file).size == (40, 20)
