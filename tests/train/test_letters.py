"""Names in any script, of any bytes and any length, in pictures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from triton_attn.train import letters
from triton_attn.train.checkpoint import Card, save_model
from triton_attn.train.letters import BASE, drawable, letters_for, shortened
from triton_attn.train.plots import MOST_LETTERS, confusion_figure, draw_confusion

Main = Callable[..., tuple[int, str, str]]

NAMES = (
    "猫", "ねこ", "고양이", "кошка", "γάτα", "قطة", "חתול", "गाय", "แมว", "😀", "a\nb", "a\tb\r", "$x^{$", r"\frac{",
    "$", "caf\udce9", "\udcff\udc80", "x" * 255, "", " ", "\u202eevil", "\ufffe", "\U0010ffff", "e\u0301", "~<>|%s{}",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_no_font_has_becomes_an_escape() -> None:
    assert drawable("кошка γάτα é") == "кошка γάτα é"
    assert drawable("a\nb\x00\x7f") == "a\\x0ab\\x00\\x7f"
    assert drawable("caf\udce9") == "caf\\xe9"
    assert drawable("\u202ea") == "\\u202ea"
    assert drawable("\U0010ffff") == "\\U0010ffff"


def test_long_names_keep_both_ends() -> None:
    assert shortened("a" * 24, 24) == "a" * 24
    cut = shortened("the beginning of a very long name, number 7", 24)
    assert len(cut) == 24
    assert cut.startswith("the beginning o")
    assert cut.endswith("number 7")


@pytest.fixture
def strange_font(tmp_path: Path) -> Iterator[str]:
    """A font that has one letter, which no font of matplotlib's has."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (600, 700), (600, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "cat": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Strange Sans", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "strange.ttf"
    builder.save(str(path))
    before = list(font_manager.fontManager.ttflist)
    caches = (letters._font_of, letters._families, letters._letters)
    font_manager.fontManager.addfont(path)
    for cache in caches:
        cache.cache_clear()
    yield "Strange Sans"
    font_manager.fontManager.ttflist[:] = before
    for cache in caches:
        cache.cache_clear()


def test_a_font_that_has_the_letters_is_found(strange_font: str, tmp_path: Path) -> None:
    assert drawable("a猫") == "a猫"
    with letters_for(["a猫"]):
        assert matplotlib.rcParams["font.family"] == [BASE, strange_font]
        figure = Figure()
        text = figure.text(0.5, 0.5, "猫", fontsize=40, weight="bold")
        figure.savefig(tmp_path / "x.png")
        assert text.get_window_extent().width > 20
    with Image.open(tmp_path / "x.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 50
    with letters_for(["abc"]):
        assert matplotlib.rcParams["font.family"] == [BASE]


@pytest.mark.parametrize("count", [3, len(NAMES)])  # a narrow picture and a wide one
def test_a_confusion_matrix_of_any_names_stays_whole(count: int, tmp_path: Path) -> None:
    names = [shortened(drawable(name), MOST_LETTERS) for name in NAMES[-count:]]
    title = "resnet152, 1281167 images, top-1 100.00 %"
    counts = np.diag(np.arange(count))
    with letters_for(names):
        figure = confusion_figure(counts, names, title)
        figure.savefig(tmp_path / "x.png")
        texts = {text: text.get_window_extent() for text in figure.findobj(Text) if text.get_text().strip()}
        page = figure.bbox
        for text, box in texts.items():
            if text.get_visible():
                assert box.x0 >= -1, text
                assert box.y0 >= -1, text
                assert box.x1 <= page.width + 1, text
                assert box.y1 <= page.height + 1, text
        (heading,) = [text for text in texts if text.get_text() == title]
        assert not heading.get_parse_math()
        axes = figure.axes[0]
        assert axes.get_window_extent().width > 0.3 * page.width
        assert [text.get_text() for text in axes.texts] == [str(number) for number in range(count)], "also the zero"
        assert [text.get_text() for text in axes.get_xticklabels()] == names
    draw_confusion(tmp_path / "y.png", counts, NAMES[-count:], title)
    with Image.open(tmp_path / "y.png") as picture:
        assert max(picture.size) < 4000


def test_eval_and_show_draw_any_names(tmp_path: Path, triton_attn_main: Main) -> None:
    from image_folders import make_folder

    names = ("猫", "$x^{$", "caf\udce9", "x" * 200)
    make_folder(tmp_path / "data", dict.fromkeys(names, 2), size=8)
    card = Card("resnet18", "se", ("stem",), {}, len(names), names, 16)
    torch.manual_seed(0)
    save_model(tmp_path / "best.safetensors", card.build().state_dict(), card)
    image = next((tmp_path / "data" / "caf\udce9").iterdir()).rename(tmp_path / "$bild_{\udce9\n猫.png")
    status, out, error = triton_attn_main(
        "eval", tmp_path, "--data", tmp_path / "data", "--split", "all", "--output", tmp_path / "o"
    )
    assert status == 2
    assert "class caf\\udce9 has one image" in error
    image.rename(tmp_path / "data" / "caf\udce9" / "000.png")
    status, out, error = triton_attn_main(
        "eval", tmp_path, "--data", tmp_path / "data", "--split", "all", "--output", tmp_path / "o"
    )
    assert (status, error) == (0, "")
    assert "top-5" not in out
    image = (tmp_path / "data" / "caf\udce9" / "000.png").rename(tmp_path / "$bild_{\udce9\n猫.png")
    status, out, error = triton_attn_main("show", tmp_path, image, "--output", tmp_path / "\udce9.png")
    assert (status, error) == (0, "")
    assert "\\udce9.png: 1 image" in out


def test_top_five_is_told_of_six_classes(tmp_path: Path, triton_attn_main: Main) -> None:
    from image_folders import make_folder

    names = tuple("abcdef")
    make_folder(tmp_path / "data", dict.fromkeys(names, 2), size=8)
    for count in (5, 6):
        card = Card("resnet18", None, ("stem",), {}, count, names[:count], 16)
        save_model(tmp_path / "best.safetensors", card.build().state_dict(), card)
        status, out, error = triton_attn_main("eval", tmp_path, "--data", tmp_path / "data", "--output", tmp_path / "o")
        if count == 6:
            assert status == 0, error
            assert "top-5 " in out
        else:
            assert "does not know: f" in error


def test_the_look_of_other_pictures_is_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    with letters_for(NAMES):
        assert matplotlib.rcParams["text.parse_math"] is False
    assert dict(matplotlib.rcParams) == before
