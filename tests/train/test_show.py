"""The sheet of ``triton-attn show``: what is drawn is what the blocks do."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import triton_attn

pytest.importorskip("matplotlib", reason="the extra `train` is not installed")
pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("sklearn", reason="the extra `train` is not installed")
pytest.importorskip("torchvision", reason="the extra `train` is not installed")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from triton_attn.train.attention_maps import SiteAttention, attention_sites, choose_sites, read_attention
from triton_attn.train.errors import UserError
from triton_attn.train.panels import draw_gates, draw_map, draw_scale, numbers
from triton_attn.train.points import GRID, cell_of, parse_points
from triton_attn.train.show import attention_sheet

BLOCKS = triton_attn.list_attention()
WHOLE_NETWORKS = True  # the sheets are of their many sites


class Tiny(nn.Module):
    """A strided convolution, an attention block, a classifier; remembers what the block took and gave."""

    def __init__(self, name: str, channels: int = 32, stride: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, stride, stride=stride)
        self.attention = nn.ModuleDict({"stem": triton_attn.create_attention(name, channels)})
        self.fc = nn.Linear(channels, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.taken = self.conv(images)
        self.given = self.attention["stem"](self.taken)
        return self.fc(self.given.mean((2, 3)))


def read_tiny(name: str, size: tuple[int, int] = (24, 32), **kwargs) -> tuple[Tiny, SiteAttention]:
    torch.manual_seed(0)
    model = Tiny(name)
    for parameter in model.attention.parameters():  # fresh gates are nearly flat, and hide mistakes
        nn.init.normal_(parameter, std=0.5)
    image = torch.randn(3, *size)
    points = kwargs.pop("points", parse_points(GRID, size))
    reading = read_attention(model, image, points, **kwargs)
    (site,) = reading.sites
    torch.testing.assert_close(reading.logits, model(image[None])[0].detach())
    return model, site


@pytest.mark.parametrize("name", ["cbam", "coordinate", "dual", "eca", "gate", "se"])
def test_gates_are_those_of_the_block(name: str) -> None:
    model, site = read_tiny(name)
    product = model.taken[0].clone()
    if site.gates is not None:
        product *= site.gates[:, None, None]
    spatial = [panel for panel in site.panels if panel.title == "spatial gate"]
    assert len(spatial) == (name in {"cbam", "dual", "gate"})
    for panel in spatial:
        product *= panel.values
    torch.testing.assert_close(product, model.given[0])
    assert (site.site, site.shape) == ("stem", (32, 6, 8))


@pytest.mark.parametrize("name", ["cbam", "coordinate", "dual", "eca", "se"])
def test_channels_with_the_largest_gates_are_shown(name: str) -> None:
    model, site = read_tiny(name, channels=3)
    assert site.gates is not None
    sizes = site.gates.abs()
    assert len(site.strongest) == 3
    assert sizes[site.strongest].min() >= sizes[[c for c in range(32) if c not in site.strongest]].max()
    for channel, panel in zip(site.strongest, site.panels[-3:], strict=True):
        torch.testing.assert_close(panel.values, model.taken[0, channel].detach())
        assert panel.title.startswith(f"channel {channel}\n")
        assert f"{site.gates[channel]:.3f}".replace("-", "−") in panel.title


def test_pixel_gates() -> None:
    model, site = read_tiny("pixel", channels=2)
    gate = (model.given / model.taken)[0].detach()
    torch.testing.assert_close(site.panels[0].values, gate.mean(0), rtol=1e-4, atol=1e-4)
    assert site.strongest == gate.mean((1, 2)).argsort(descending=True)[:2].tolist()
    for channel, panel in zip(site.strongest, site.panels[1:], strict=True):
        torch.testing.assert_close(panel.values, gate[channel], rtol=1e-4, atol=1e-4)


def test_non_local_rows_are_those_of_the_marked_cells() -> None:
    points = [(0, 31), (23, 0), (9, 13)]
    model, site = read_tiny("nonlocal", points=points)
    block = model.attention["stem"]
    assert isinstance(block, triton_attn.NonLocalBlock)
    q, k, v = block.project(model.taken)
    matrix = torch.softmax(q @ k.transpose(1, 2), -1)
    torch.testing.assert_close((model.taken + (matrix @ v).transpose(1, 2).reshape(model.taken.shape)), model.given)
    assert [panel.cell for panel in site.panels] == [(0, 7), (5, 0), (2, 3)]
    for panel in site.panels:
        assert panel.cell is not None
        row, column = panel.cell
        torch.testing.assert_close(panel.values, matrix[0, row * 8 + column].reshape(6, 8).detach())
    assert [panel.points for panel in site.panels] == [(0,), (1,), (2,)]


def test_points_in_one_cell_share_a_panel_and_only_their_rows_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = triton_attn.NonLocalBlock.attention_from

    def heard(self: triton_attn.NonLocalBlock, x: Tensor, positions: list[tuple[int, int]]) -> Tensor:
        asked.append(list(positions))
        return plain(self, x, positions)

    monkeypatch.setattr(triton_attn.NonLocalBlock, "attention_from", heard)
    _, site = read_tiny("nonlocal", size=(8, 8))
    assert site.shape[1:] == (2, 2)
    assert asked == [[(0, 0), (0, 1), (1, 1), (1, 0)]]
    assert [panel.points for panel in site.panels] == [(0,), (1,), (2, 4), (3,)]


def test_a_gating_signal_counts() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = triton_attn.AttentionGate(4, gating_channels=6)

        def forward(self, x: Tensor) -> Tensor:
            self.x, self.signal = x.repeat(1, 2, 1, 1)[:, :4], x.repeat(1, 2, 1, 1)[:, :, ::2, ::2]
            self.y = self.gate(self.x, gating=self.signal)
            return self.y.mean((2, 3))

    torch.manual_seed(0)
    model = Gated()
    (site,) = read_attention(model, torch.randn(3, 8, 8), []).sites
    torch.testing.assert_close(model.x * site.panels[0].values, model.y)


@pytest.mark.parametrize("image", [(28, 28), (48, 64), (7, 5)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (7, 5), (14, 3)])
def test_a_pixel_lies_in_its_cell(image: tuple[int, int], grid: tuple[int, int]) -> None:
    for point in itertools.product(range(image[0]), range(image[1])):
        for position, size, cells, cell in zip(point, image, grid, cell_of(point, image, grid), strict=True):
            assert 0 <= cell < cells
            assert cell * size / cells <= position + 0.5 <= (cell + 1) * size / cells


def test_nothing_stays_behind() -> None:
    model = Tiny("cbam").train()
    model.conv.eval()
    read_attention(model, torch.randn(3, 16, 16), [])
    with pytest.raises(RuntimeError):
        read_attention(model, torch.randn(4, 16, 16), [])
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert module.training == (module is not model.conv)


def test_sites_are_named_and_chosen() -> None:
    few = ["stem", "layer4"]
    assert choose_sites(few) == few
    model = triton_attn.resnet18({"stem": "eca", "block": "eca"})
    names = list(attention_sites(model))
    assert sorted(names) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0",
                             "layer4.1", "stem"]  # fmt: skip
    assert sorted(choose_sites(names)) == ["layer1.1", "layer2.1", "layer3.1", "layer4.1", "stem"]
    assert choose_sites(names, ["layer2.*", "layer4.1"]) == ["layer2.0", "layer2.1", "layer4.1"]
    assert choose_sites(names, ["*"]) == names
    assert len(choose_sites([f"site{i}" for i in range(50)])) == 8
    with pytest.raises(ValueError, match=r"'layer9' is not in this model \(its sites: stem, layer4\)"):
        choose_sites(few, ["stem", "layer9"])


def test_points_are_pixels_or_fractions() -> None:
    assert parse_points(["0,0", " 27 , 55 ", "0.5,0.25", "1.0,1.0", "0.0,.5"], (28, 56)) == [
        (0, 0), (27, 55), (14, 14), (27, 55), (0, 28)]  # fmt: skip
    assert parse_points(["-1,5", "3,-56", "-28,-1"], (28, 56)) == [(27, 5), (3, 0), (0, 55)]
    for word in ("", "3", "a,b", "1,2,3", "0.5,1", ".,.", "1e1,2.0", "nan,nan"):
        with pytest.raises(UserError, match="--at: expected Y,X"):
            parse_points([word], (28, 56))
    for word in ("28,0", "0,56", "-29,0", "0,-57", "1.01,0.5", "-0.1,0.5"):
        with pytest.raises(UserError, match=f"--at: {word} lies outside of the image, which is 28×56"):
            parse_points([word], (28, 56))


def test_a_small_map_is_drawn_in_its_cells() -> None:
    _, site = read_tiny("nonlocal", size=(8, 8), points=[(0, 7)])
    axes = Figure().add_subplot()
    draw_map(axes, torch.rand(3, 8, 8), site.panels[0], [(0, 7)])
    drawn = axes.images[-1]
    assert drawn.get_interpolation() == "nearest"
    assert drawn.get_extent() == [0, 8, 8, 0]
    torch.testing.assert_close(torch.tensor(np.asarray(drawn.get_array())), site.panels[0].values)
    (frame,) = axes.patches
    assert isinstance(frame, Rectangle)
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (4, 0, 4, 4)
    cross = axes.lines[-1]
    assert np.asarray(cross.get_xydata()).tolist() == [[7.5, 0.5]]


def test_bars_tell_true_values() -> None:
    for name in ("gate", "coordinate"):
        _, site = read_tiny(name)
        axes, scale = Figure().subplots(1, 2)
        values = site.panels[0].values
        drawn = draw_map(axes, torch.rand(3, 24, 32), site.panels[0], [])
        draw_scale(scale, drawn, values)
        assert drawn.get_clim() == (float(values.min()), float(values.max()))
        words = [label.get_text().replace("−", "-") for label in scale.get_yticklabels()]
        ticks = torch.linspace(float(values.min()), float(values.max()), 3)
        assert [float(word) for word in words] == pytest.approx(ticks.tolist(), rel=0.01, abs=0.01)
    assert site.gates is not None
    axes = Figure().add_subplot()
    draw_gates(axes, site)
    torch.testing.assert_close(torch.tensor(axes.lines[0].get_ydata()), site.gates.sort(descending=True).values)
    assert numbers([0.5, 0.50001, 0.50002]) == ["0.50000", "0.50001", "0.50002"]
    assert numbers([0.0, 4e-5, 8e-5]) == ["0.0e−6", "40.0e−6", "80.0e−6"]
    assert numbers([-1.5, 0.0, 1.5]) == ["−1.50", "0.00", "1.50"]


def test_values_that_are_not_finite_are_told() -> None:
    model = Tiny("gate")
    nn.init.constant_(model.attention.get_parameter("stem.psi.bias"), float("nan"))
    figure = attention_sheet(model, torch.rand(1, 3, 16, 16))
    assert any("not finite" in text.get_text() for text in figure.findobj(Text))


def test_no_text_overlaps_or_leaves_the_page() -> None:
    torch.manual_seed(0)
    classes = [f"a class with a name that is very long {i}" for i in range(10)]
    model = triton_attn.resnet18({"stem": "cbam", "layer2": "nonlocal", "layer3": "pixel", "layer4": "coordinate"},
                                 num_classes=10)  # fmt: skip
    figure = attention_sheet(
        model, torch.rand(1, 3, 24, 48), names=["a $file_{ with a long, long name.jpeg"], classes=classes,
        channels=6, title="long " * 100, note="long " * 200,
    )  # fmt: skip
    figure.canvas.draw()
    page = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.findobj(Text)
             if text.get_visible() and text.get_text().strip()]  # fmt: skip
    assert len(boxes) > 80
    for words, box in boxes:
        assert box.x0 >= 0, words
        assert box.y0 >= 0, words
        assert box.x1 <= page.width, words
        assert box.y1 <= page.height, words
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or down <= 1, (one, other)


# Maps of one cell for all; of more cells for the one block whose panels are seen from cells.
@pytest.mark.parametrize(("name", "size"), [*((name, (4, 4)) for name in BLOCKS), ("nonlocal", (8, 16))])
def test_every_block_is_drawn_on_the_smallest_maps(name: str, size: tuple[int, int]) -> None:
    figure = attention_sheet(Tiny(name), torch.rand(1, 3, *size))
    pictures = [axes for axes in figure.axes if len(axes.images) == 2]
    assert len(pictures) == len(read_tiny(name, size=size)[1].panels)


def test_bad_arguments_of_the_function() -> None:
    model = Tiny("se")
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\)"):
        attention_sheet(model, torch.rand(3, 16, 16))
    with pytest.raises(ValueError, match=r"at must lie on the 16×16 image, got \(16, 0\)"):
        attention_sheet(model, torch.rand(1, 3, 16, 16), at=[(16, 0)])
    with pytest.raises(ValueError, match="must name the model's 5 classes, got 2"):
        attention_sheet(model, torch.rand(1, 3, 16, 16), classes=["a", "b"])
    with pytest.raises(ValueError, match="no attention block"):
        attention_sheet(nn.Conv2d(3, 4, 1), torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="pixels high, expected at most"):
        attention_sheet(model, torch.rand(1, 3, 1, 1).expand(200, 3, 16, 16))
