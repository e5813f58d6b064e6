"""A page of Markdown with pictures beside it, each with where its numbers are from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.claims import load


class Page:
    """Markdown, and the pictures in it."""

    def __init__(self, output: Path, results: Path, check: bool) -> None:
        self.output, self.results, self.check = output, results, check
        self.lines: list[str] = []
        self.missing: list[str] = []

    def add(self, *lines: str) -> None:
        self.lines += [*lines, ""]

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.add(*("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)))

    def source(self, path: Path, content: Mapping[str, Any]) -> str:
        """Where numbers are from, in a line."""
        versions = content["versions"]
        device = f"{content['device']}, " if "device" in content else "counted with no GPU, "
        dates = sorted({case["date"][:10] for case in (*content.get("cases", {}).values(), content) if "date" in case})
        when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
        kept = ", freed memory kept" if content.get("freed_memory_is_kept") else ""
        text = f"{device}torch {versions['torch']}, Triton {versions['triton']}{when}{kept}"
        return f"{text} (`results/{path.relative_to(self.results)}`)"

    def figure(self, name: str, alt: str, data: Any, draw: Any, size: tuple[float, float], source: str) -> None:
        """A picture, drawn unless the page is only checked; its data's digest stands in the page."""
        path = self.output / "performance" / name
        if not self.check:
            plots.save(draw, path, size, source.replace("`", ""))
        self.missing += [f"{path}{end}" for end in (".png", ".svg") if not path.with_name(f"{name}{end}").exists()]
        self.add(
            f"![{alt}](performance/{name}.png)",
            "",
            f"*{source}; [SVG](performance/{name}.svg).* <!-- data {plots.digest(data)} -->",
        )


def read(path: Path) -> dict[str, Any] | None:
    """A result file, or None where it is not there."""
    return load(path) if path.exists() else None
