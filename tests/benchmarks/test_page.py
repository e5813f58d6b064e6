"""The pages say what the result files say; losses are shown, and what is stale is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.files import RESULTS, ResultError
from benchmarks.written import page, plots
from benchmarks.written.sections import Pictures, suites
from triton_attn import list_attention

BLOCK = "# SE\n<!-- traffic: se -->\nold\n<!-- end of traffic -->\nrest\n"
HEAD = {"device": "NVIDIA Test 1", "versions": {"torch": "2.11", "triton": "3.6"}, "goal": 0.6}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Pictures are noted, and not drawn."""
    paths: list[Path] = []

    def save(path: Path, *_: object) -> None:
        paths.append(path)
        path.parent.mkdir(exist_ok=True)
        for end in (".png", ".svg"):
            path.with_suffix(end).touch()

    monkeypatch.setattr(plots, "save", save)
    return paths


def test_the_committed_pages_are_what_the_files_say() -> None:
    assert page.main(["--check"]) == 0


def test_pages_are_written_where_they_are_stale(
    tmp_path: Path, drawn: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results, output = tmp_path / "results", tmp_path / "docs"
    shutil.copytree(RESULTS / "nvidia-h200", results / "nvidia-h200")
    shutil.copy(RESULTS / "traffic.json", results)
    (output / "blocks").mkdir(parents=True)
    (output / "blocks" / "se.md").write_text(BLOCK)
    words = ["--results", str(results), "--output", str(output)]
    assert page.main([*words, "--check"]) == 1
    assert not (output / "performance.md").exists()
    assert page.main(words) == 0
    nonlocals = [f"nonlocal-{direction}-nvidia-h200" for direction in ("backward", "forward")]
    assert [path.name for path in drawn] == ["tax-nvidia-h200", *nonlocals]
    assert "old" not in (output / "blocks" / "se.md").read_text()
    assert page.main([*words, "--check"]) == 0
    (output / "performance" / "tax-nvidia-h200.svg").unlink()
    capsys.readouterr()
    assert page.main([*words, "--check"]) == 1
    assert capsys.readouterr().out == f"{output / 'performance' / 'tax-nvidia-h200.svg'} is missing\n"
    # A number that only a picture shows.
    measured = json.loads((results / "nvidia-h200" / "nonlocal.json").read_text())
    for case in measured["cases"].values():
        for who, each in case["seconds"].items():
            each["median"] *= 1 if who == "ours" else 2
    (results / "nvidia-h200" / "nonlocal.json").write_text(json.dumps(measured))
    assert page.main([*words, "--check"]) == 1
    assert "performance.md is not what the result files say" in capsys.readouterr().out
    (results / "traffic.json").write_text("{")
    assert page.main(words) == 2
    assert "traffic.json: expected a result file in JSON" in capsys.readouterr().err


def test_without_results(tmp_path: Path, drawn: list[Path]) -> None:
    assert page.main(["--results", str(tmp_path), "--output", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "**No time on a GPU has been measured**" in text
    assert "![" not in text
    assert not drawn


def spread(median: float) -> dict[str, float]:
    return {"median": median, "q1": 0.95 * median, "q3": 1.05 * median}


def section(folder: Path, suite: str, **content: Any) -> str:
    (folder / f"{suite}.json").write_text(json.dumps({**HEAD, **content}))
    return "\n".join(suites(folder, Pictures()))


def timed(**more: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"block": "se", "site": "layer1", "shape": [64, 256, 56, 56]}
    about |= {"dtype": "bfloat16", "layout": "contiguous"}
    about |= {"direction": "training", "date": "2026-11-24T00:00:00+00:00"}
    about |= {"seconds": {"ours": spread(1e-3)}, "ours_over": {"eager": spread(0.9), "copy": spread(50.0)}}
    return {**about, "peak_bytes": {"ours": 10_000_000}, "not_timed": {}, **more}


def test_blocks_and_their_losses(tmp_path: Path) -> None:
    slow = timed(block="gate", ours_over={"eager": spread(1.2)}, not_timed={"timm": "Wrong: a | b"})
    broken = timed(block="eca", seconds={}, not_timed={"ours": "Boom: x"})
    text = section(tmp_path, "blocks", cases={"a": timed(), "b": slow, "c": broken})
    table = text.partition("| --- |")[2].splitlines()[1:]
    rival = "eager PyTorch **1.20** (1.14–1.26); timm: Wrong: a / b"
    about = "gate, layer1, bfloat16, contiguous, training"
    assert table[0] == f"| {about} | 1000 | {rival} | triton_attn 10 |"  # the worst first
    assert "| 1000 | eager PyTorch 0.90 (0.85–0.95) |" in text  # a copy is no rival
    assert "| **Boom: x** |" in text
    assert f"*NVIDIA Test 1, torch 2.11, Triton 3.6, 2026-11-24 (`results/{tmp_path.name}/blocks.json`)." in text


def test_what_no_committed_file_has(tmp_path: Path) -> None:
    about = {"site": "stem", "image": 224, "batch": 1, "direction": "forward", "positions": 12544, "widths": [32, 64]}
    refused, failed = timed(**about, not_timed={"flex": "no"}), timed(**about, seconds={}, ours_over={})
    text = section(tmp_path, "nonlocal", cases={"a": refused, "b": failed})
    assert "| stem at 224², batch 1, bfloat16, forward | 1000 | eager PyTorch 0.90 (0.85–0.95); Flex" in text
    assert "FlexAttention: no" in text
    entry = {"kernel": "k", "dtype": "fp16", "layout": "contiguous", "channels": [8], "positions": 49}
    entry |= {"config": {"S": 2}, "rule_seconds": 2e-6, "seconds": 1e-6}
    text = section(tmp_path, "tuning", entries=[entry])
    assert "| k, fp16, contiguous, [8] channels, 49 positions, {'S': 2} | 2 | tuned **2.00** | — |" in text


def test_pictures_are_the_same_for_the_same_data(tmp_path: Path) -> None:
    pictures = Pictures()
    assert len(list(suites(RESULTS / "cpu", pictures))) > 10
    assert {name.partition("-")[0] for name in pictures} == {"tax", "nonlocal"}
    for name in ("one", "two"):
        plots.save(tmp_path / name / "picture", *pictures["nonlocal-forward-cpu"])
    for end in (".png", ".svg"):
        one, two = ((tmp_path / name / f"picture{end}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert len(one) > 5000


def test_a_blocks_page() -> None:
    text = page.filled(BLOCK, RESULTS, Pictures())
    assert text.startswith("# SE\n<!-- traffic: se -->\nOne T is")
    assert text.endswith("<!-- end of traffic -->\nrest\n")
    assert text.count("| contiguous, with shortcut and ReLU | 4.") == 1
    assert page.filled(text, RESULTS, Pictures()) == text
    with pytest.raises(ResultError, match="no traffic of 'ecu'"):
        page.filled(BLOCK.replace("se -->", "ecu -->"), RESULTS, Pictures())


def test_costs_and_taxes() -> None:
    cost, tax = (page.KINDS[kind](RESULTS, "nvidia-h200", Pictures()).splitlines() for kind in ("cost", "tax"))
    assert [line.split("`")[1] for line in cost[2:]] == [*list_attention(), *list_attention("published")]
    se = "| `se` | 8,464 | 3.0 + 4.1 | 3.0 + 10.0 | (2, 64, 28, 28) | 3.1%, eager 33.6% | 17.0%, eager 44.3% |"
    assert se in cost
    assert "| se | block | 3.1% | 33.6% | 35.7% | 17.0% | 44.3% | 45.4% |" in tax
    assert "| nonlocal | stem+layer4 | **156.7%** | 128.5% |  | **180.9%** | 132.4% |  |" in tax  # where ours loses
