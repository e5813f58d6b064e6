"""Lay the package out for Hugging Face's ``kernels``: ``python -m hub.layout build/hub --repository OWNER/NAME``.

There is nothing to compile, so that what their builder would make comes with it: ``build.toml``, ``flake.nix`` and
``torch-ext/triton_attn`` for the builder, and ``build/torch-<backend>`` as their loader finds it. The ops of every
layout are registered under a name of its own, since several versions may be loaded in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "triton-attn"
PACKAGE = "triton_attn"
BACKENDS = ("cuda", "rocm")
LEFT_OUT = ("train", "cli.py", "tune_command.py", "fuse_command.py", "_checkout.py", "py.typed", "__pycache__")
"""Applications, which the loader has no door for; and what finds a checkout's ``reference``."""

FLAKE = """{
  description = "Flake for triton_attn";

  inputs.kernel-builder.url = "github:huggingface/kernels";

  outputs = { self, kernel-builder }: kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""


def lay_out(folder: Path, repository: str, version: int = 1, backends: tuple[str, ...] = BACKENDS) -> None:
    """Write the layout.

    Args:
        folder: a new folder, or one that a layout was written to before.
        repository: where it will be on the Hub, ``owner/name``.
        version: its major version there.
        backends: what variants to build, of ``cuda``, ``rocm`` and ``cpu``.

    Raises:
        ValueError: ``repository`` is no ``owner/name``.
        FileExistsError: the folder holds something else.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"repository must be owner/name, got {repository!r}")
    if folder.exists() and any(folder.iterdir()) and not (folder / "build.toml").is_file():
        raise FileExistsError(f"{folder} holds something else")
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "torch-ext" / PACKAGE
    shutil.copytree(ROOT / PACKAGE, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(ROOT / "reference", source / "reference", ignore=shutil.ignore_patterns("__pycache__"))
    own = digest(source)
    _rewrite(source, f"_{PACKAGE}_{own}")
    (folder / "build.toml").write_text(build_file(repository, version, backends))
    (folder / "flake.nix").write_text(FLAKE)
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    for backend in backends:
        variant = folder / "build" / f"torch-{backend}"
        shutil.copytree(source, variant)
        unique = f"_{PACKAGE}_{backend}_{own}"
        (variant / "metadata.json").write_text(json.dumps(metadata(unique, version, backend), indent=2) + "\n")


def build_file(repository: str, version: int, backends: tuple[str, ...]) -> str:
    """What their builder reads."""
    return f"""[general]
name = "{NAME}"
version = {version}
edition = 5
license = "MIT"
backends = {json.dumps(list(backends))}

[general.hub]
repo-id = "{repository}"

[torch-noarch]
pyext = ["py", "json"]
"""


def metadata(unique: str, version: int, backend: str) -> dict[str, object]:
    """What their loader reads."""
    return {
        "id": unique,
        "name": NAME,
        "version": version,
        "license": "MIT",
        "python-depends": [],
        "backend": {"type": backend},
    }


def digest(source: Path) -> str:
    """Of all that is in the package."""
    found = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        found.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:7]


def _rewrite(source: Path, namespace: str) -> None:
    """``reference`` lies inside, ``layers`` is there at once, and ops are registered under a name of their own."""
    for file, pattern, instead in (
        ("__init__.py", r"# _checkout [^\n]*\nfrom \. import _checkout, ", "from . import layers, "),
        ("ops/library.py", rf'(?m)^NAMESPACE = "{PACKAGE}"$', f'NAMESPACE = "{namespace}"'),
    ):
        text = (source / file).read_text()
        changed, times = re.subn(pattern, instead, text)
        if times != 1:
            raise ValueError(f"{file} has {times} lines like {pattern}, expected 1")
        (source / file).write_text(changed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repository", required=True, metavar="OWNER/NAME")
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=(*BACKENDS, "cpu"))
    arguments = parser.parse_args()
    lay_out(arguments.folder, arguments.repository, arguments.version, tuple(arguments.backends))
