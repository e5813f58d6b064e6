"""The pages: no link leads nowhere, and what a package index shows needs no repository beside it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:)([^)#]*)(?:#([^)]+))?\)")


def slug(heading: str) -> str:
    """What a heading's anchor is called."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.encode("ascii", "ignore").decode()).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for path, anchor in LINK.findall(text):
        target = page.parent / path if path else page
        assert target.exists(), f"{page}: {path}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page}: {path}#{anchor}"


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 70


def test_links_on_a_package_index() -> None:
    absolute = runpy.run_path(str(ROOT / "setup.py"))["absolute"]
    text = "a [page](docs/index.md#here), ![a picture](docs/a.png), [far](https://x.org/a)"
    base = "https://x.org/o/r"
    assert absolute(text, base) == (
        f"a [page]({base}/blob/main/docs/index.md#here), ![a picture]({base}/raw/main/docs/a.png), [far](https://x.org/a)"
    )
    assert absolute(text, "") == "a page, , [far](https://x.org/a)"
    readme = (ROOT / "README.md").read_text()
    assert LINK.search(readme)
    assert not LINK.search(absolute(readme, base))
    assert not LINK.search(absolute(readme, ""))


def test_the_readme_says_what_fuse_serves() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())["architectures"].values()
    wholly = sum(each["how"] == "wholly" for each in found)
    assert f"serves {wholly} of {len(found)} architectures" in (ROOT / "README.md").read_text()
