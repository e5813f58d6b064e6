"""The rest is pyproject.toml's: here are the links of what a package index shows.

In the repository the README's links are paths. ``REPOSITORY`` is the repository's address, as ``make dist`` sets it,
and makes them absolute; a build without it has their words alone, and no link that leads nowhere.
"""

import os
import re
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)]+)\)")


def absolute(text: str, repository: str) -> str:
    """Markdown whose links to paths lead into a repository, or without one are words."""

    def put(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        if not repository:
            return "" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/main/{path})"

    return LINK.sub(put, text)


if __name__ == "__main__":
    repository = os.environ.get("REPOSITORY", "").rstrip("/")
    pages = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
    pages = {name: f"{repository}/blob/main/{path}" for name, path in pages.items()}
    setup(
        long_description=absolute(Path("README.md").read_text(encoding="utf-8"), repository),
        long_description_content_type="text/markdown",
        project_urls={"Repository": repository, **pages} if repository else {},
    )
