"""The table of architectures: what is counted as what, and the file that is committed."""

from __future__ import annotations

import json

import pytest

from benchmarks.counted import coverage
from benchmarks.files import RESULTS
from triton_attn.fusion import Entry, Report

ONE, PARTS = "one op", "by parts, gates in PyTorch: SiLU between the layers"
FUSED = Entry("a", "SEModule", True, ONE)
LEFT = Entry("b", "SplitAttn", False, "no adapter for it")


@pytest.mark.parametrize(
    ("entries", "how"), [([FUSED], "wholly"), ([FUSED, LEFT], "partly"), ([LEFT], "left"), ([FUSED, FUSED], "wholly")]
)
def test_wholly_partly_and_left(entries: list[Entry], how: str) -> None:
    assert coverage.architecture(Report(entries)).how == how


def test_what_is_counted() -> None:
    found = coverage.architecture(
        Report(
            [FUSED, Entry("c", "SEModule", True, f"{PARTS}, with shortcut and ReLU", tail=True, norm=True), LEFT, LEFT]
        )
    )
    assert (found.modules, found.one_op, found.by_parts, found.tails, found.norms) == (4, 1, 1, 1, 1)
    assert found.fused == {"SEModule": 2}
    assert found.left == {"SplitAttn: no adapter for it": 2}


def test_architectures_are_built_and_fused() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    result = coverage.measure(r"timm/(seresnet18|bat_resnext26ts|resnet18)$|torchvision/mobilenet_v3_small$")
    assert {name: each["how"] for name, each in result["architectures"].items()} == {
        "timm/bat_resnext26ts": "left",
        "timm/seresnet18": "wholly",
        "torchvision/mobilenet_v3_small": "wholly",
    }
    assert {name: each["norms"] for name, each in result["architectures"].items()} == {
        "timm/bat_resnext26ts": 0,
        "timm/seresnet18": 8,
        "torchvision/mobilenet_v3_small": 9,
    }
    assert result["without"] == 1
    assert result["failed"] == {}
    page = coverage.page(result)
    assert "4 architectures, 3 with gate-like attention: 2 fused wholly, 0 partly, 1 left" in page
    (left,) = result["architectures"]["timm/bat_resnext26ts"]["left"]
    why = left.removeprefix("BatNonLocalAttn: ")
    assert f"| `BatNonLocalAttn`: {why} | 8 | 1 | timm/bat_resnext26ts |" in page
    assert f"| timm/bat_resnext26ts | 0 of 8 | 8 {left} |" in page


def test_the_committed_file_is_what_the_page_says() -> None:
    result = json.loads((RESULTS / "coverage.json").read_text())
    assert (RESULTS.parents[1] / "docs" / "coverage.md").read_text() == coverage.page(result)
    assert sum(each["how"] == "wholly" for each in result["architectures"].values()) >= 393
