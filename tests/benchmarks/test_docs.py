"""The pages of the blocks say what was counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import docs

PAGE = "# SE\n<!-- traffic: se -->\nold\n<!-- end of traffic -->\nrest\n"
COUNTED = {
    "versions": {"torch": "2.14.1", "triton": "3.8.0"},
    "dtype": "float16",
    "rows": [
        {
            "case": "se",
            "block": "se",
            "layout": "contiguous",
            "shortcut": True,
            "shape": [2, 64, 28, 28],
            "ours": {
                "forward": {"total": 4.066, "launches": 2},
                "backward": {"total": 5.15, "launches": 3},
                "kept": {"total": 1.07, "output": 0.0},
            },
            "eager": {
                "forward": {"total": 8.0, "launches": 8},
                "backward": {"total": 13.04, "launches": 14},
                "kept": {"total": 2.003, "output": 1.0},
            },
        }
    ],
}


def test_the_pages_are_as_counted() -> None:
    assert docs.main(["--check"]) == 0


def test_a_section_is_filled_and_the_rest_is_kept() -> None:
    page = docs.filled(PAGE, COUNTED)
    assert page.startswith("# SE\n<!-- traffic: se -->\nOne T is")
    assert "counted at (2, 64, 28, 28), float16, torch 2.14.1, Triton 3.8.0" in page
    cells = "4.07 | 5.15 | 2 + 3 | 1.07 | 8.0 + 13.0 | 8 + 14 | 2.00 (1 its output) |"
    assert f"| contiguous, with shortcut and ReLU | {cells}" in page
    assert page.endswith("<!-- end of traffic -->\nrest\n")
    assert docs.filled(page, COUNTED) == page
    with pytest.raises(ValueError, match="no traffic of 'eca'"):
        docs.filled(PAGE.replace("se -->", "eca -->"), COUNTED)


def test_a_stale_page_is_said_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    (tmp_path / "se.md").write_text(PAGE)
    assert docs.main(["--check"]) == 1
    assert capsys.readouterr().out == "not as counted: se.md\n"
    assert (tmp_path / "se.md").read_text() == PAGE
    assert docs.main([]) == 0
    assert "old" not in (tmp_path / "se.md").read_text()
    assert docs.main(["--check"]) == 0
