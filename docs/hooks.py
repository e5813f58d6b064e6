"""What mkdocs does to a page besides: docstrings are written for Sphinx's roles too, which Markdown does not know."""

from __future__ import annotations

import re

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_content(html: str, **_: object) -> str:
    """The page without the roles' names: what they name is in code."""
    return ROLE.sub("", html)
