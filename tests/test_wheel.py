"""Sdist and wheel: built without a network, with what belongs in them and nothing else, and importable by itself."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("build", "setuptools")),
    reason="builds with the packages build and setuptools, which are not installed",
)


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        arguments, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


REPOSITORY = "https://example.org/some/where"


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Both, of a copy of the sources, so that no build folder lands among them; the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "sources"
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    # Top-level folders that must stay out come along too.
    for name in ("reference", "triton_attn", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=leftovers)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    run(
        sys.executable,
        *("-m", "build", "--no-isolation", "--outdir", str(folder / "dist")),
        cwd=copy,
        REPOSITORY=REPOSITORY,
        # Whoever asks for the network gets nowhere.
        PIP_NO_INDEX="1",
        http_proxy="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def read(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name).decode()


def test_name(wheel):
    version = re.search(r'__version__ = "(.+)"', (ROOT / "triton_attn" / "version.py").read_text())[1]
    assert wheel.name == f"triton_attn-{version}-py3-none-any.whl"


def test_every_source_is_in_it(names):
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "triton_attn").rglob("*.py")}
    expected |= {f"triton_attn/{path.relative_to(ROOT)}" for path in (ROOT / "reference").rglob("*.py")}
    assert "triton_attn/reference/non_local.py" in expected
    assert {name for name in names if name.endswith(".py")} == expected


def test_data_files_are_in_it(names):
    assert "triton_attn/py.typed" in names
    data = [
        path
        for path in (ROOT / "triton_attn").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    ]
    assert {str(path.relative_to(ROOT)) for path in data} <= set(names)


def test_nothing_else_is_in_it(names):
    tops = {name.partition("/")[0] for name in names}
    assert len(tops) == 2
    assert "triton_attn" in tops
    assert next(iter(tops - {"triton_attn"})).endswith(".dist-info")
    unwanted = {"tests", "benchmarks", "docs", "__pycache__"}
    assert not [name for name in names if unwanted & set(name.split("/")) or Path(name).name.startswith("test_")]


def test_entry_point_and_license(wheel, names):
    assert read(wheel, "entry_points.txt").split() == ["[console_scripts]", "triton-attn", "=", "triton_attn.cli:main"]
    assert read(wheel, "LICENSE") == (ROOT / "LICENSE").read_text()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_metadata(wheel):
    metadata = email.message_from_string(read(wheel, "METADATA"))
    assert metadata["Name"] == "triton_attn"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    absolute = runpy.run_path(str(ROOT / "setup.py"))["absolute"]
    assert metadata.get_payload().strip() == absolute((ROOT / "README.md").read_text(), REPOSITORY).strip()
    assert metadata["Author"] == "The triton_attn authors"
    assert "attention" in metadata["Keywords"].split(",")
    assert f"Repository, {REPOSITORY}" in metadata.get_all("Project-URL")
    assert "Programming Language :: Python :: 3.10" in metadata.get_all("Classifier")
    assert {"train", "bench", "docs", "dev"} <= set(metadata.get_all("Provides-Extra"))
    core = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert sorted(re.match(r"[\w-]+", each)[0] for each in core) == ["torch", "triton"]
    (triton,) = (each for each in core if each.startswith("triton"))
    assert re.search(r""";\s*sys_platform == ['"]linux['"]""", triton)
    (torch,) = (each for each in core if each.startswith("torch"))
    assert ";" not in torch


def test_the_sdist_has_what_is_installed_and_no_tests(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in found if not name.startswith("triton_attn.egg-info")} - {""}
    files = {"pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in", "PKG-INFO"}
    assert tops == {"reference", "triton_attn", "README.md", "CHANGELOG.md", "LICENSE", *files}


def test_it_imports_and_runs_by_itself(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = """
import importlib.util, pathlib, sys
import torch, triton_attn, triton_attn.reference.weights
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "triton_attn":
        assert pathlib.Path(module.__file__).is_relative_to(sys.argv[1]), (name, module.__file__)
assert pathlib.Path(triton_attn.reference.__file__).parent.name == "reference"
assert importlib.util.find_spec("reference") is None
model = triton_attn.resnet18("cbam", num_classes=2)
model(torch.zeros(2, 3, 32, 32)).sum().backward()
print("runs")
"""
    # Ahead of an editable install's own finder, which would lead back to the repository.
    unpacked = str(tmp_path / "unpacked")
    environment = {"PYTHONPATH": unpacked, "OMP_NUM_THREADS": "1"}
    assert run(sys.executable, "-c", program, unpacked, cwd=elsewhere, **environment).strip() == "runs"
