"""The pages: no link leads nowhere, and what a package index shows needs no repository beside it."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import runpy
import types
from pathlib import Path

import pytest

import triton_attn
from triton_attn import fusion, published, reference

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


def test_the_readme_names_both_families() -> None:
    rows = [line.split("|")[-2] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| … ")]
    tutorials, published = ([each.strip(" `") for each in row.split(",")] for row in rows)
    assert sorted(tutorials) == triton_attn.list_attention("tutorial")
    assert sorted(f"published.{name}" for name in published) == triton_attn.list_attention("published")


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^::: (\S+)\.(\w+)$", text, re.MULTILINE)
    there = [getattr(importlib.import_module(module), name) for module, name in listed]
    functional = {name for name, each in vars(triton_attn.functional).items() if inspect.isfunction(each)}
    functional = {
        name for name in functional if getattr(triton_attn.functional, name).__module__.endswith("functional")
    }
    public = {module: module.__all__ for module in (triton_attn, fusion, published, reference, reference.published)}
    for module, names in {**public, triton_attn.functional: functional}.items():
        for name in names:
            each = getattr(module, name)
            if isinstance(each, str | types.ModuleType):
                continue
            found = any(each is other for other in there) or re.search(rf'heading: ".*\b{name}\b', text)
            assert found, f"{module.__name__}.{name}"


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
