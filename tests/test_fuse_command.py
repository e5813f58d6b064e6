"""``triton-attn fuse``: the report of an architecture, and what it says to names that it does not know."""

from __future__ import annotations

import re
import sys

import pytest

from triton_attn import cli, fuse_command

pytest.importorskip("timm")
pytest.importorskip("torchvision")


def test_every_module_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuse", "timm/seresnet18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    how = "one op, with batch norm, shortcut and ReLU"
    assert lines[1].split(maxsplit=3) == ["layer1.0.se", "SEModule", "fused", how]
    assert lines[-1] == "8 of 8 fused: 8 SEModule"


def test_without_tails_and_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuse", "timm/seresnet18", "--no-tails"]) == 0
    assert "with shortcut" not in capsys.readouterr().out
    assert cli.main(["fuse", "torchvision/mobilenet_v3_small", "--totals"]) == 0
    assert capsys.readouterr().out == "9 of 9 fused: 9 SqueezeExcitation\n"


def test_the_status_says_whether_anything_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuse", "timm/bat_resnext26ts"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("left: 8 BatNonLocalAttn: products of blocks of the map")
    assert cli.main(["fuse", "torchvision/resnet18"]) == 0
    assert capsys.readouterr().out == "no attention that is known here\n"


@pytest.mark.parametrize("name", ["torchvision/regnet_y_400mf", "torchvision/lraspp_mobilenet_v3_large"])
def test_networks_that_are_built_in_another_way(name: str) -> None:
    cls = type(fuse_command.build(name))
    assert cls.__module__.startswith("torchvision.models.")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm/seresnet5", r"timm has no model 'seresnet5'; did you mean seresnet50 or "),
        ("torchvision/zzzz", r"torchvision has no model 'zzzz'$"),
        ("seresnet50", r"expected timm/NAME or torchvision/NAME, got 'seresnet50'"),
        ("keras/resnet", r"expected timm/NAME or torchvision/NAME, got 'keras/resnet'"),
    ],
)
def test_unknown_names(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuse", name]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(says, line.rstrip())


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert cli.main(["fuse", "timm/seresnet18"]) == 2
    assert "timm is not installed: pip install timm" in capsys.readouterr().err
