"""The performance page: everything from files, losses shown, nothing claimed that was not found."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.files import RESULTS
from tests.benchmarks import results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a GPU, of a CPU, and what was counted."""
    found = tmp_path / "results"
    slow = results.calls()
    name = "eca-layer4-1x2048x7x7-bfloat16-channels_last-forward"
    slow["cases"][name] = results.calls(wall=1.5)["cases"][name]
    results.put(found, blocks=results.blocks(), calls=slow, models=results.models(), autotune=results.autotune())
    (found / "nvidia-test-1" / "nonlocal.json").write_text(json.dumps(results.nonlocals()))
    (found / "cpu").mkdir()
    on_cpu = results.blocks(dtype="float32")
    for case in on_cpu["cases"].values():
        slow = 1.2 if case["block"] == "gate" else 0.9
        case["ours_over"] = {"formula": results.spread(slow), "timm": results.spread(0.8)}
        if case["block"] == "se":
            case["ours_over"] = {"formula": results.spread(1.001), "copy": results.spread(50.0)}
        case["seconds"] |= {who: results.spread(1e-3) for who in case["ours_over"]}
    on_cpu["freed_memory_is_kept"] = True
    (found / "cpu" / "blocks.json").write_text(json.dumps(on_cpu))
    shutil.copy(RESULTS / "traffic.json", found)
    (found / "compile").mkdir()
    shutil.copy(RESULTS / "compile" / "report.json", found / "compile")
    return found


def write(folder: Path, output: Path, *more: str) -> int:
    return report.main(["--results", str(folder), "--output", str(output), *more])


def test_a_page(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "docs"
    assert write(folder, output) == 0
    page = (output / "performance.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\((performance/[\w-]+)\.png\)", page)
    assert pictures == [
        "performance/tax-nvidia-test-1",
        "performance/roofline-nvidia-test-1",
        "performance/nonlocal-forward-nvidia-test-1",
        "performance/nonlocal-backward-nvidia-test-1",
        "performance/traffic",
        "performance/cpu-blocks",
    ]
    for picture in pictures:
        assert (output / f"{picture}.png").stat().st_size > 5000
        assert "<svg" in (output / f"{picture}.svg").read_text()
    assert sorted(path.name for path in output.iterdir()) == ["performance", "performance.md"]
    # Every table and picture has its device, versions, date and file.
    assert page.count("NVIDIA Test 1, torch 2.11, Triton 3.6, 2026-11-24 (`results/nvidia-test-1/") >= 6
    for file in re.findall(r"`results/([\w./-]+)`", page):
        assert (folder / file).exists()
    assert "No time on a GPU" not in page
    # A loss is shown, and first.
    assert "gate, layer1, channels_last, training | 1000" in page
    assert "the plain formula **1.20** (1.14–1.26)" in page
    table = page[page.index("## On a CPU") :].partition("| --- |")[2].splitlines()[1:]
    assert table[0].startswith("| gate, ")  # the worst, and a copy is no rival
    assert "the plain formula 1.00 (" in page  # alike is no loss
    assert ", freed memory kept (`results/cpu/blocks.json`)" in page
    assert "| 5.0% (5.0% to 5.0%) |" in page
    losses = [line.split(" | ")[0] for line in page.splitlines() if "**falls short**" in line]
    assert losses == ["| a call at batch 1 and 16, inference", "| blocks on a CPU against the tutorial's plain formula"]
    assert page.index("**falls short**") < page.index("| pass |")
    assert "sdpa-flash: RuntimeError: No available kernel / here" in page
    # Wall time beside the GPU's.
    table = page[page.index("### A call at a small batch") :].partition("| --- |")[2].splitlines()[1:]
    assert table[0] == "| eca, layer4, batch 1, forward | 150 | 100 | **1.50** (1.42–1.58) | 9 | 12 |"
    assert table[1].split(" | ")[1:4] == ["90", "100", "0.90 (0.85–0.95)"]


def test_the_same_files_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert write(folder, tmp_path / name) == 0
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("one", "two")
    )
    assert one == two


def test_a_stale_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "docs"
    assert write(folder, output, "--check") == 1
    assert not output.exists()
    write(folder, output)
    capsys.readouterr()
    assert write(folder, output, "--check") == 0
    (output / "performance" / "traffic.svg").unlink()
    assert write(folder, output, "--check") == 1
    assert "traffic.svg is missing" in capsys.readouterr().out
    write(folder, output)
    # A number that only a picture shows.
    counted = json.loads((folder / "traffic.json").read_text())
    for row in counted["rows"]:
        if (row["case"], row["layout"], row["shortcut"]) == ("se", "channels_last", True):
            row["eager"]["forward"]["total"] += 0.5
    (folder / "traffic.json").write_text(json.dumps(counted))
    assert write(folder, output, "--check") == 1
    assert "is not what the result files say" in capsys.readouterr().out


def test_without_results(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert write(tmp_path / "results", tmp_path / "docs") == 0
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert "**No time on a GPU has been measured yet**" in page
    assert "`make bench` measures them" in page
    assert "![" not in page
    assert "| pass |" not in page


def test_a_truncated_file_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "nvidia-test-1" / "models.json"
    path.write_text(path.read_text()[:300])
    assert write(folder, tmp_path / "docs") == 2
    error = capsys.readouterr().err
    assert "models.json: expected a result file in JSON" in error
    assert not (tmp_path / "docs").exists()


def test_the_committed_page_is_what_the_result_files_say() -> None:
    assert report.main(["--check"]) == 0
