"""The contract in T: what SE moves, forward and backward, in both layouts, at several shapes; and what is kept.

What every block moves is counted by `make guard`, against the ceilings and what was counted before.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import triton_attn
from benchmarks.counted import inductor, traffic
from benchmarks.counted.ceilings import CEILINGS, Ceiling, over
from benchmarks.counted.kept import count_kept
from benchmarks.counted.meter import Traffic, count
from benchmarks.files import RESULTS

pytestmark = pytest.mark.interpreter


def counted(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, with_shortcut: bool
) -> tuple[Traffic, Traffic, int]:
    block = triton_attn.SEBlock(shape[1]).to(dtype)
    x, shortcut, grad = (torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(3))
    wanted = [x.requires_grad_(), *block.parameters()]
    if with_shortcut:
        wanted.append(shortcut.requires_grad_())
    with count(x, block.parameters()) as forward:
        y = block(x, shortcut if with_shortcut else None)
    with count(x, block.parameters()) as backward:
        torch.autograd.grad(y, wanted, grad)
    return forward, backward, x.numel() * x.itemsize


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [(torch.float16, torch.contiguous_format), (torch.float32, torch.channels_last)],
    ids=str,
)
@pytest.mark.parametrize(
    ("with_shortcut", "forward_ceiling", "backward_ceiling"), [(False, 3.05, 4.05), (True, 4.1, 5.2)]
)
def test_ceilings(
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    with_shortcut: bool,
    forward_ceiling: float,
    backward_ceiling: float,
) -> None:
    shape = (4, 16, 35, 35)
    forward, backward, size = counted(shape, dtype, memory_format, with_shortcut)
    assert forward.total <= forward_ceiling * size
    assert backward.total <= backward_ceiling * size
    assert forward.total_sectors + backward.total_sectors <= 1.15 * (forward.total + backward.total)
    assert forward.map_launches.total() == backward.map_launches.total() == 2
    assert forward.launches.total() == 3  # the gate network of few channels is one
    assert backward.launches.total() == 3  # and backward, where the multiply's ends its sums
    # The mask is bits: one per element, written once and read twice.
    bits = shape[0] * shape[1] * shape[2] * shape[3] // 8
    if with_shortcut:
        assert bits <= forward.moved["mask"] <= 1.05 * bits
        assert 2 * bits <= backward.moved["mask"] <= 2.1 * bits
    else:
        assert forward.moved["mask"] == backward.moved["mask"] == 0


def test_inference_writes_no_mask() -> None:
    block = triton_attn.SEBlock(16)
    x = torch.randn(1, 16, 8, 8)
    with count(x, block.parameters()) as forward, torch.no_grad():
        block(x, x)
    assert forward.moved["mask"] == 0


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_what_is_kept(with_shortcut: bool) -> None:
    row = traffic.measure(traffic.Case("se"), channels_last=True, with_shortcut=with_shortcut, shape=(1, 32, 28, 28))
    assert row.ours is not None
    # The map, and with the tail a bit for every element of 16 bits, where eager PyTorch keeps the output.
    assert row.ours.kept.total == pytest.approx(1 + with_shortcut / 16, abs=0.02)
    assert row.ours.kept.output == 0
    assert row.eager.kept.total == pytest.approx(1 + with_shortcut, abs=0.02)
    assert row.eager.kept.output == with_shortcut


def test_a_storage_is_kept_once_and_parameters_are_not_counted() -> None:
    weight, x = torch.randn(3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    with count_kept([weight]) as kept:
        y = (x * weight).exp()  # x and the weight, and the output
        z = x[:2] * x[1:3]
    assert (kept.total, kept.of(x), kept.of(y), kept.of(z)) == (2 * 60, 60, 60, 0)
    with count_kept() as kept, torch.no_grad():
        (x * x).exp()
    assert kept.total == 0


def test_a_ceiling_with_and_without_the_tail() -> None:
    ceiling = Ceiling(3, 4, mask_reads=2, launches=(2, 3))
    assert ceiling.passes(False, 2, 64) == (3, 4)
    assert ceiling.passes(True, 2, 64) == (4 + 1 / 16, 5 + 2 / 16)
    assert ceiling.passes(True, 4, 64) == (4 + 1 / 32, 5 + 2 / 32)
    # Seven float32 values for each position, of 64 channels in 2 bytes or 32 in 4.
    ceiling = Ceiling(4, 6, mask_reads=3, position_values=(7, 0))
    assert ceiling.passes(False, 2, 64) == ceiling.passes(False, 4, 32) == (4 + 28 / 128, 6)


def test_the_committed_counts_are_within_their_ceilings() -> None:
    for row in json.loads((RESULTS / "traffic.json").read_text())["rows"]:
        ours = [row["ours"][way] for way in ("forward", "backward")]
        found = ((one[key], other[key]) for one, other in (ours,) for key in ("total", "sectors", "launches"))
        assert over(row["case"], CEILINGS[row["case"]], row["shortcut"], 2, row["shape"][1], *found) == []


def test_tails_move_less_than_what_inductor_plans() -> None:
    rows = [row for row in json.loads((RESULTS / "traffic.json").read_text())["rows"] if "inductor" in row]
    assert len(rows) == 2 * len(traffic.TAILS) + len(traffic.INSIDE)
    for row in rows:
        ours = [row["ours"][way]["total"] for way in ("forward", "backward")]
        tolerated = 0.1 if row["shortcut"] else 0.05  # of vectors and of the mask, beside so small a map
        assert all(a <= b + tolerated for a, (b, _) in zip(ours, row["inductor"], strict=False)), row["case"]


def test_what_inductor_plans() -> None:
    class Tail(torch.nn.Module):
        def forward(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
            return torch.relu(x * x.mean((2, 3), keepdim=True) + shortcut)

    def planned(training: bool) -> list[tuple[float, int]]:
        def make() -> tuple[torch.nn.Module, list[torch.Tensor]]:
            return Tail(), [torch.empty(8, 64, 56, 56, requires_grad=training) for _ in range(2)]

        found = inductor.moved(make, training)
        return [(pytest.approx(moved / (8 * 64 * 56 * 56 * 4), abs=1e-3), kernels) for moved, kernels in found]

    assert planned(training=False) == [(3, 1)]
    # The mask is a byte for each element of four.
    assert planned(training=True) == [(3.25, 1), (4.25, 1)]


def test_what_is_over_a_ceiling_is_named() -> None:
    ceiling = Ceiling(3, 4, mask_reads=2, launches=(2, 3))
    assert over("se", ceiling, False, 2, 64, (3.05, 4.07), (1.1, 1.14), (2, 3)) == []
    lines = over("se, contiguous", ceiling, False, 2, 64, (3.07, 4.0), (1.0, 1.16), (2, 4))
    assert lines == [
        "se, contiguous: forward moves 3.070 T, ceiling 3.000 T",
        "se, contiguous: backward touches 1.160 of its bytes, ceiling 1.15",
        "se, contiguous: backward starts 4 launches, ceiling 3",
    ]


def test_the_check_fails_over_a_ceiling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = traffic.measure(traffic.Case("se"), channels_last=True, with_shortcut=True, shape=(1, 32, 28, 28))
    assert row.ours is not None
    assert sum(each.total for each in row.eager.both) > 2 * sum(each.total for each in row.ours.both)

    arguments = ["--check", "--blocks", "se", "--shape", "1,16,28,28"]
    monkeypatch.setitem(CEILINGS, "se", Ceiling(9, 9, 9, (9, 9)))
    assert traffic.main(arguments) == 0
    monkeypatch.setitem(CEILINGS, "se", Ceiling(9, 3.9, 0, (9, 2)))
    assert traffic.main(arguments) == 1
    said = capsys.readouterr().err
    for layout in ("contiguous", "channels_last"):
        assert f"se, {layout}: backward moves 4." in said
        assert f"se, {layout}, shortcut: backward moves 5." in said
        assert f"se, {layout}: backward starts" in said
    assert "forward" not in said

    monkeypatch.delitem(CEILINGS, "se")
    assert traffic.main(arguments) == 1
    assert "se, contiguous: has no ceiling" in capsys.readouterr().err


def test_ceilings_of_narrow_kernels_hold_no_wide_ones() -> None:
    row = traffic.measure(traffic.Case("se"), channels_last=True, with_shortcut=False, shape=(1, 16, 8, 8))
    assert row.excess()  # small maps: parameters weigh
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CEILINGS, "se", Ceiling(1, 1, 1, channels=15))
        assert row.excess() == []


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results" / "traffic.json"
    assert traffic.main(["--json", "--blocks", "nonlocal,se", "--shape", "1,16,12,12", "--output", str(file)]) == 0
    printed = capsys.readouterr().out
    assert file.read_text() == printed
    assert [each.name for each in file.parent.iterdir()] == ["traffic.json"]
    found = json.loads(printed)
    assert found["versions"]["torch"] == torch.__version__
    assert found["dtype"] == "float16"
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert row["shape"] == [1, 16, 12, 12]
        assert set(row["eager"]) == {"forward", "backward", "kept"}
        forward = row["ours"]["forward"]
        assert forward["total"] == pytest.approx(sum(forward["roles"].values()))
        if row["block"] == "se":
            assert forward["roles"]["map"] == (4 if row["shortcut"] else 3)
    assert {row["block"] for row in found["rows"]} == {"nonlocal", "se"}
    # What the guard asks for: the same of ours, and nothing of others.
    assert traffic.main(["--json", "--ours", "--blocks", "se", "--shape", "1,16,12,12"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [
        {**row, "eager": None} for row in found["rows"] if row["block"] == "se"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blocks", "se,sse"], "unknown sse; known are cbam"),
        (["--shape", "1,2,3"], "expected N,C,H,W"),
        (["--shape", "1,2,3,0"], "expected N,C,H,W"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        traffic.main(arguments)
    assert message in capsys.readouterr().err


def test_a_few_have_every_case_layout_and_tail() -> None:
    names = [*triton_attn.list_attention(), *traffic.PUBLISHED, "tails"]
    every = list(traffic.cases(names))
    few = traffic.few(every)
    for values, kept in zip(zip(*every, strict=True), zip(*few, strict=True), strict=True):
        assert {*map(str, values)} == {*map(str, kept)}
    # The others are as they were counted last.
    left = traffic.left_out(names)
    assert len(left) == len(every) - len(few) > 30
    assert all(row["ours"]["forward"]["total"] for row in left)
