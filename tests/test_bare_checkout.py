"""A clean checkout works with an interpreter that has PyTorch, Triton and pytest alone, as a borrowed GPU has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu import STAGES

ROOT = Path(__file__).resolve().parents[1]
# NumPy is the interpreter's, which takes the GPU's place here.
HAS = ("torch", "triton", "pytest", "pytest-benchmark", "numpy")
LEFTOVERS = shutil.ignore_patterns(".git", ".*_cache", ".venv", "build", "runs", "dist", "*.egg-info", "__pycache__")

if any(not list(metadata.distributions(name=name)) for name in HAS):
    pytest.skip(f"needs {', '.join(HAS)}", allow_module_level=True)


def installed_with(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """The distributions of these names, and what they require."""
    found: dict[str, metadata.Distribution] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        requirements = [Requirement(each) for each in found[name].requires or ()]
        wanted += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter of its own, to which nothing else is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in installed_with(HAS).values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("clone") / "triton_attn", ignore=LEFTOVERS)


def run(*words: str | Path, cwd: Path) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON", "PYTEST", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_the_interpreter_has_nothing_else(python: Path, tmp_path: Path) -> None:
    for name in ("triton_attn", "timm", "matplotlib", "hypothesis", "torchvision", "safetensors", "yaml", "xdist"):
        with pytest.raises(AssertionError, match=f"No module named '{name}'"):
            run(python, "-c", f"import {name}", cwd=tmp_path)


def test_it_imports(python: Path, checkout: Path) -> None:
    program = "import triton_attn, triton_attn.reference as r; print(triton_attn.__file__); print(r.__file__)"
    files = run(python, "-c", program, cwd=checkout).split()
    assert files == [str(checkout / "triton_attn" / "__init__.py"), str(checkout / "reference" / "__init__.py")]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_command_for_a_gpu(python: Path, checkout: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By Triton's interpreter: its lane is collected, and suites run: of blocks, which is what calls is, and of tuning.

    Those of networks are imported alone; --every-case runs them.
    """
    left_out = {"blocks"} if request.config.getoption("--every-case") else {"blocks", "nonlocal", "models"}
    stages = [stage for stage in STAGES if stage not in left_out]
    assert "test_models[" in run(python, "-m", "pytest", "--collect-only", "-q", "benchmarks/timed", cwd=checkout)
    words = ("make", "gpu", "QUICK=1", "BUDGET=60m", f"PYTHON={python}", f"OUTPUT={tmp_path}")
    printed = run(*words, f"STAGES={' '.join(stages)}", cwd=checkout)
    assert "Without matplotlib no page is written" in printed
    folder = tmp_path / "interpreter"
    suites = [f"{stage}.json" for stage in stages]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*suites, "tests.jsonl"])
    tests = json.loads((folder / "tests.json").read_text())
    assert (tests["failed"], tests["skips"]) == (0, ["Skipped: no GPU: torch.cuda.is_available() is False"])
    assert tests["skipped"] > 500
    for suite in {"calls", "nonlocal", "models"} & {*stages}:
        for case in json.loads((folder / f"{suite}.json").read_text())["cases"].values():
            assert {"ours", "eager"} <= case["seconds"].keys()
            assert all(0 < each["q1"] <= each["median"] <= each["q3"] for each in case["ours_over"].values())
            assert all(name.startswith("timm") for name in case["not_timed"])  # which there is not
    tuning = json.loads((folder / "tuning.json").read_text())["entries"]
    assert tuning
    assert all(each["tried"] > 1 for each in tuning)
    # The claims are judged, and none of a GPU's is said to be measured.
    assert "se, both ways" in printed
    assert "0 falls short" in printed
