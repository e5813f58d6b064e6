"""``triton-attn show``, the command: the sheet that it writes, and its errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from triton_attn import cli

pytest.importorskip("matplotlib", reason="the extra `train` is not installed")
pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("sklearn", reason="the extra `train` is not installed")
pytest.importorskip("torchvision", reason="the extra `train` is not installed")

from matplotlib.figure import Figure
from PIL import Image

from triton_attn.train.checkpoint import Card, save_model

WHOLE_NETWORKS = True  # the sheets are of their many sites


def write_checkpoint(path: Path, attention: str | dict[str, str] | None, size: int = 32) -> Path:
    torch.manual_seed(0)
    card = Card("resnet18", attention, ("stem", "layer4"), {}, 10, tuple("0123456789"), size, epoch=2, val_accuracy=0.5)
    save_model(path, card.build().state_dict(), card)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_checkpoint(folder / "best.safetensors", {"stem": "cbam", "layer4": "nonlocal"})


def test_the_sheet_is_a_png(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (70, 50), "red").save(tmp_path / "red.png")
    output = tmp_path / "sheet.png"
    words = ["show", str(checkpoint.parent), "digits:3", str(tmp_path / "red.png"), "--output", str(output)]
    assert cli.main([*words, "--at", "0,31", "--at", "0.5,0.5"]) == 0
    with Image.open(output) as sheet:
        sheet.load()
        assert sheet.format == "PNG"
        assert 1000 < sheet.width < 3000
        assert 800 < sheet.height < 3000
        assert len(sheet.convert("RGB").resize((300, 200)).getcolors(60_000)) > 500
        said = capsys.readouterr().out
        assert said == f"{output}: 2 images, sites stem, layer4, {sheet.width}×{sheet.height} pixels\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["red.png", "sheet.png"]


def test_the_sheet_is_of_the_numbers_that_the_network_saw(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton_attn.train import sheet

    drawn: list[sheet.Group] = []
    plain = sheet.draw_sheet

    def draw_sheet(groups: list[sheet.Group], *rest: str) -> Figure:
        drawn.extend(groups)
        return plain(groups, *rest)

    monkeypatch.setattr(sheet, "draw_sheet", draw_sheet)
    assert cli.main(["show", str(checkpoint), "digits:0", "--output", str(tmp_path / "a.png"), "--site", "layer*"]) == 0
    (group,) = drawn
    assert group.name == "digits:0 (a 0)"
    assert [site.site for site in group.reading.sites] == ["layer4"]
    assert group.image.shape == (3, 32, 32)
    # A digit is grey and black at its corners: so is the picture, once the normalisation is undone.
    assert group.image[:, 0, 0].abs().max() < 1e-3
    assert (group.image[0] - group.image[2]).abs().max() < 1e-3
    assert group.image.max() > 0.8


def test_what_is_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_checkpoint(tmp_path / "many.safetensors", {"block": "eca"})
    assert cli.main(["show", str(file), "digits:3", "--output", str(tmp_path / "a.png"), "--channels", "0"]) == 0
    said = capsys.readouterr().out
    assert "sites layer1.1, layer2.1, layer3.1, layer4.1," in said
    assert "left out: layer1.0, layer2.0, layer3.0, layer4.0 (--site '*' shows all" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("{tmp}/nope.safetensors digits:1", "CHECKPOINT: {tmp}/nope.safetensors: no such file"),
        ("{tmp} digits:1", "CHECKPOINT: {tmp}: no best.safetensors"),
        ("{tmp}/cut.safetensors digits:1", "CHECKPOINT: {tmp}/cut.safetensors: cannot be read"),
        ("{tmp}/text.png digits:1", "CHECKPOINT: {tmp}/text.png: cannot be read"),
        ("{tmp}/foreign.safetensors digits:1", "CHECKPOINT: {tmp}/foreign.safetensors: not a checkpoint"),
        ("{tmp}/plain.safetensors digits:1", "CHECKPOINT: {tmp}/plain.safetensors: the model has no attention"),
        ("{good} {tmp}/nope.png", "IMAGE: {tmp}/nope.png: no such file"),
        ("{good} {tmp}", "IMAGE: {tmp}: it is a folder"),
        ("{good} {tmp}/text.png", "IMAGE: {tmp}/text.png: cannot be read as an image"),
        ("{good} {tmp}/cut.png", "IMAGE: {tmp}/cut.png: cannot be read as an image"),
        ("{good} digits:1797", "IMAGE: expected digits:INDEX with an index of 0 to 1796, got 'digits:1797'"),
        ("{good} digits:x", "IMAGE: expected digits:INDEX"),
        ("{good} digits:1 --at 32,0", "--at: 32,0 lies outside of the image, which is 32×32"),
        ("{good} digits:1 --at here", "--at: expected Y,X"),
        ("{good} digits:1 --at -40,5", "--at: -40,5 lies outside of the image"),
        ("{good} digits:1 --site layer9", "--site: site 'layer9' is not in this model (its sites: stem, layer4)"),
        ("{good} digits:1 --channels -1", "--channels: expected 0 or more, got -1"),
        ("{good} digits:1 --output {tmp}/none/sheet.png", "--output: {tmp}/none/sheet.png: there is no folder"),
        ("{good} digits:1 --output {tmp}", "--output: expected the name of a .png file"),
        ("{good} digits:1 --output {tmp}/folder.png", "--output: {tmp}/folder.png is a folder"),
        ("{good} digits:1 --output {tmp}/sheet.jpg", "--output: expected the name of a .png file"),
        ("{good} digits:1 --output /proc/sheet.png", "--output: cannot write into /proc"),
    ],
)
def test_errors(
    words: str,
    expected: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from safetensors.torch import save_file

    if "/proc" in words and not Path("/proc/self").exists():
        pytest.skip("no /proc here: a folder that nobody can write into is missing")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    if "cut.safetensors" in words:
        (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:100_000])
    if "foreign" in words:
        save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    if "plain" in words:
        write_checkpoint(tmp_path / "plain.safetensors", None)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["show", *words.format(tmp=tmp_path, good=checkpoint).split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert expected.format(tmp=tmp_path) in said.err
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_write_leaves_the_old_sheet(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "sheet.png"
    output.write_bytes(b"the old one")

    def savefig(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"half a she")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", savefig)
    assert cli.main(["show", str(checkpoint), "digits:3", "--output", str(output)]) == 2
    assert "--output: cannot be written: [Errno 28] No space left on device" in capsys.readouterr().err
    assert output.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("package", ["matplotlib", "torchvision", "sklearn", "safetensors"])
def test_missing_packages_are_named(
    package: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name in {
            f"triton_attn.train.{m}" for m in ("sheet", "panels", "data", "transforms")
        }:
            monkeypatch.delitem(sys.modules, name)

    class Without:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    assert cli.main(["show", str(checkpoint), "digits:3", "--output", str(tmp_path / "sheet.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{package} is not installed" in said
    assert 'pip install "triton_attn[train]"' in said
    assert not list(tmp_path.iterdir())
