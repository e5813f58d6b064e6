"""What people's own folders bring: links, pipes, dotted folders, kinds of images that are not read."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from image_folders import make_folder

from triton_attn.train.checkpoint import Card, save_model
from triton_attn.train.data import Images, load_images
from triton_attn.train.errors import UserError

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"cat": 5, "dog": 5}, size=8)


def names(images: Images, root: Path) -> list[str]:
    found = [os.path.relpath(path, root) for path, _ in (*images.train, *images.val) if isinstance(path, Path)]
    assert len(found) == len(images.train) + len(images.val)
    return sorted(found)


def plain() -> list[str]:
    return sorted(f"{kind}/{number:03}.png" for kind in ("cat", "dog") for number in range(5))


def test_a_usual_folder_has_nothing_to_tell(data: Path) -> None:
    images = load_images(str(data))
    assert names(images, data) == plain()
    assert images.left_out == ""


@pytest.mark.parametrize("place", [".git", "__MACOSX", "cat/.thumbnails", "cat/__MACOSX", "cat/deep/.x/y"])
def test_dotted_folders_are_left_out_at_every_level(place: str, data: Path) -> None:
    (data / place).mkdir(parents=True)
    shutil.copy(data / "cat" / "000.png", data / place / "copy.png")
    images = load_images(str(data))
    assert images.classes == ("cat", "dog")
    assert names(images, data) == plain()
    assert "dotted folders and files, or __MACOSX: 1 (" in images.left_out


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/again", "cat"),
        ("cat/up", "."),
        ("cat/top", ".."),
        ("cat/dogs", "dog"),
        ("cat/zzz.png", "dog/000.png"),
        ("cat/000-again.png", "cat/000.png"),
        ("cow", "dog"),
        ("aaa", "dog"),
        ("cat/nowhere", "nothing"),
        ("cat/itself", "cat/itself"),
        ("cat/nowhere.png", "nothing.png"),
    ],
)
def test_links_into_the_tree_are_not_followed(link: str, target: str, data: Path) -> None:
    (data / link).symlink_to(data / target)
    images = load_images(str(data))
    assert images.classes == ("cat", "dog")
    assert names(images, data) == plain()
    assert f"({link})" in images.left_out


def test_links_to_elsewhere_are_followed_once(data: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "far", {"a": 2, "b": 1}, size=8)
    (tmp_path / "far" / "a" / "loop").symlink_to(tmp_path / "far")
    (data / "cat" / "near").symlink_to(tmp_path / "far" / "a")
    (data / "cat" / "nearer").symlink_to(tmp_path / "far" / "a")
    (data / "dog" / "one.png").symlink_to(tmp_path / "far" / "b" / "000.png")
    (data / "dog" / "two.png").symlink_to(tmp_path / "far" / "b" / "000.png")
    images = load_images(str(data))
    real = [os.path.realpath(path) for path, _ in (*images.train, *images.val) if isinstance(path, Path)]
    assert len(real) == len(set(real)) == 13
    assert "cat/nearer" in images.left_out
    assert "dog/two.png" in images.left_out or "cat/near/loop" in images.left_out


def test_a_file_of_two_names_counts_once(data: Path) -> None:
    os.link(data / "dog" / "000.png", data / "cat" / "zzz.png")
    images = load_images(str(data))
    assert len(images.train) + len(images.val) == 10
    assert "further names of files that are counted already: 1 (dog/000.png)" in images.left_out


def test_the_held_out_part_has_no_copies(tmp_path: Path) -> None:
    make_folder(tmp_path / "d" / "train", {"cat": 4, "dog": 4}, size=8)
    make_folder(tmp_path / "d" / "val", {"cat": 1, "dog": 1}, size=8, seed=1)
    (tmp_path / "d" / "val" / "cat" / "link.png").symlink_to(tmp_path / "d" / "train" / "cat" / "000.png")
    os.link(tmp_path / "d" / "train" / "cat" / "001.png", tmp_path / "d" / "val" / "cat" / "hard.png")
    (tmp_path / "d" / "val" / "dog" / "all").symlink_to(tmp_path / "d" / "train" / "dog")
    images = load_images(str(tmp_path / "d"))
    assert len(images.train) == 8
    assert [path.name for path, _ in images.val if isinstance(path, Path)] == ["000.png", "000.png"]
    for word in ("link.png", "hard.png", "val/dog/all"):
        assert word in images.left_out


def test_val_may_not_be_a_link_to_train(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"cat": 2, "dog": 2}, size=8)
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(UserError, match=r"has train/ but no val/.*Left out: links .*: 1 \(val\)"):
        load_images(str(tmp_path))


def test_a_split_of_links_to_a_folder_beside_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "all", {"cat": 4, "dog": 4}, size=8)
    for part, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in numbers:
                (tmp_path / part / kind / f"{number}.png").symlink_to(tmp_path / "all" / kind / f"{number:03}.png")
    images = load_images(str(tmp_path))
    assert (len(images.train), len(images.val)) == (6, 2)
    assert images.left_out == ""


def test_pipes_and_sockets_are_not_opened(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(data / "cat" / "pipe.png")
    os.mkfifo(data / "pipe")
    monkeypatch.chdir(data / "dog")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        (data / "cat" / "zero.png").symlink_to("/dev/zero")
        images = load_images(str(data))
    assert names(images, data) == plain()
    assert "neither files nor folders: 4 (" in images.left_out


def test_kinds_that_are_not_read_are_counted(data: Path) -> None:
    for name in ("a.gif", "b.GIF", "c.heic", "notes.txt", ".DS_Store", "Thumbs.db"):
        (data / "cat" / name).write_bytes(b"")
    assert load_images(str(data)).left_out == "images of kinds that are not read: 2 .gif, 1 .heic"
    shutil.rmtree(data / "dog")
    (data / "dog").mkdir()
    (data / "dog" / "x.avif").write_bytes(b"")
    with pytest.raises(UserError, match=r"dog holds no images; expected files ending in .*1 \.avif"):
        load_images(str(data))


def test_images_outside_of_the_classes_are_told(data: Path) -> None:
    shutil.copy(data / "cat" / "000.png", data / "stray.png")
    assert load_images(str(data)).left_out == "images outside of the class folders: 1 (stray.png)"


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/data"
    for kind in (b"caf\xe9", "猫".encode()):
        os.makedirs(root + b"/" + kind)
        for number in range(3):
            shutil.copy(
                make_folder(tmp_path / "x", {"a": 1}) / "a" / "000.png", root + b"/%s/\xff%d.png" % (kind, number)
            )
    images = load_images(os.fsdecode(root))
    assert images.classes == ("caf\udce9", "猫")
    assert len(images.train) + len(images.val) == 6


def test_a_folder_that_cannot_be_read_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"--data: .*dog cannot be read \(Permission denied\)"):
        load_images(str(data))


@pytest.mark.parametrize("command", ["train", "eval"])
def test_what_was_left_out_is_said_in_one_line(
    command: str, data: Path, tmp_path: Path, triton_attn_main: Main
) -> None:
    (data / "cat" / "again").symlink_to(data / "dog")
    os.mkfifo(data / "cat" / "pipe.png")
    (data / "cat" / "a.gif").write_bytes(b"")
    (data / "__MACOSX").mkdir()
    if command == "train":
        words = ["--output", tmp_path / "run", "--image-size", 16, "--epochs", 1, "--batch-size", 4, "--workers", 0]
    else:
        card = Card("resnet18", None, ("stem",), {}, 2, ("cat", "dog"), 16)
        save_model(tmp_path / "best.safetensors", card.build().state_dict(), card)
        words = [tmp_path / "best.safetensors", "--output", tmp_path]
    status, out, error = triton_attn_main(command, *words, "--data", data)
    assert status == 0, error
    (line,) = [line for line in out.splitlines() if "left out: " in line]
    for word in ("cat/again", "cat/pipe.png", "1 .gif", "__MACOSX"):
        assert word in line
    assert error == ""
