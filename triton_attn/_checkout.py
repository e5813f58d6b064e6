"""Where ``triton_attn.reference`` lies: inside of this package once installed, in a bare checkout beside it."""

from pathlib import Path

from . import __path__ as search

_package = Path(__file__).parent
if not (_package / "reference").is_dir():
    search.append(str(_package.parent))
