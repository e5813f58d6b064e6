"""The library on other versions of PyTorch and Triton than the pinned ones: ``python -m benchmarks.counted.compat``.

For every pair an environment is built, once, under ``build/compat`` (5 GB each, from the package index), and what needs
no GPU is run there: the core of the interpreter lane, the compile lane, launches, and spills at ResNet-50's sites.
The outcome goes to ``results/compat.json`` and into ``docs/backends.md``; it fails where a part fails. A run of some
parts leaves what the file has of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.files import RESULTS, ROOT, today, write

PAGE = ROOT / "docs" / "backends.md"
SECTION = re.compile(r"(<!-- compat -->\n).*?(<!-- end of compat -->)", re.DOTALL)
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
SAID = 2000  # characters of what a part said that failed


@dataclass(frozen=True)
class Environment:
    """A pair of versions, the Python that it is tried with where there is one, and what it wants beside it."""

    torch: str
    triton: str
    python: str
    # Their interpreters do not run beside NumPy 2.5.
    numpy: str = "2.2.6"

    @property
    def name(self) -> str:
        return f"torch-{self.torch}"

    @property
    def packages(self) -> list[str]:
        """What pip is asked for."""
        pairs = [f"torch=={self.torch}.*", f"triton=={self.triton}.*", f"numpy=={self.numpy}"]
        return [*pairs, *pinned(TOOLS)]


ENVIRONMENTS = (Environment("2.8", "3.4", "3.11"), Environment("2.11", "3.6", "3.12"))


@dataclass(frozen=True)
class Part:
    """A module that is run in an environment, with its arguments."""

    name: str
    command: tuple[str, ...]


PYTEST = ("pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--tb=line", "--show-capture=no")
# Of every op: numbers forward and backward, registration with PyTorch, one graph, autocast.
CORE = "parity or pool_and_activation or opcheck or compile or autocast or test_dot or backend"
PARTS = (
    Part("interpreter", (*PYTEST, "--lane", "interpreter", "tests/ops", "tests/test_backend.py", "-k", CORE)),
    Part("compile", (*PYTEST, "--lane", "compile")),
    Part("launches", (*PYTEST, "tests/ops/test_plans.py")),
    Part(
        "spills",
        ("benchmarks.counted.compile_report", "--ptx", "--targets", "sm_90", *("--output", "build/compat/report")),
    ),
)


def pinned(names: Iterable[str]) -> list[str]:
    """Requirements of these packages as the project pins them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in names]


def prepared(environment: Environment, folder: Path) -> Path:
    """The Python of an environment, which is built unless it is there.

    Raises:
        subprocess.CalledProcessError: it cannot be built.
    """
    path, wanted = folder / environment.name, "\n".join(environment.packages) + "\n"
    python, mark = path / "bin" / "python", path / "packages.txt"
    if not (mark.exists() and mark.read_text() == wanted):
        print(f"== {environment.name}: building {path}", flush=True)
        subprocess.run([interpreter(environment.python), "-m", "venv", "--clear", str(path)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *environment.packages], check=True)
        write(mark, wanted)
    return python


def interpreter(version: str) -> str:
    """The Python of this version, or the one at work where none runs: a name may be a version switch's."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
        return found
    return sys.executable


def run(part: Part, python: Path, log: Path) -> dict[str, Any]:
    """Run a part: whether it passed, in how many seconds, and its last word, or more where it failed."""
    kept = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "PYTHONPATH")}
    begun = time.monotonic()
    done = subprocess.run(
        [str(python), "-m", *part.command],
        cwd=ROOT,
        env={**kept, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    write(log, done.stdout)
    said = done.stdout.rstrip()
    passed = done.returncode == 0
    return {
        "passed": passed,
        "seconds": round(time.monotonic() - begun),
        "said": last_word(said),
        **({} if passed else {"output": said[-SAID:]}),
    }


def last_word(said: str) -> str:
    """How many tests passed and failed, or what spills: the last that was said of that."""
    tests = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", said.rpartition("\n")[2])
    spills = re.findall(r"^\d+ of \d+ kinds spill: .*$", said, re.MULTILINE)
    return ", ".join(tests or spills[-1:])


def versions_of(python: Path) -> dict[str, str]:
    """The versions in an environment."""
    code = "import json; from benchmarks.files import versions; print(json.dumps(versions()))"
    found = subprocess.run([str(python), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def table(found: Mapping[str, Any]) -> str:
    """What passes where, as Markdown."""
    head, rows = [""], {part.name: [part.name] for part in PARTS}
    for each in found["environments"].values():
        versions = each["versions"]
        head.append(f"torch {versions['torch']}, Triton {versions['triton']}, Python {versions['Python']}")
        for name, cells in rows.items():
            cells.append(cell(each["parts"].get(name)))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows.values()))


def cell(outcome: Mapping[str, Any] | None) -> str:
    """An outcome in a few words."""
    if outcome is None:
        return "not run"
    verdict = "passes" if outcome["passed"] else "**fails**"
    return f"{verdict} ({outcome['said']})" if outcome["said"] else verdict


def filled(page: str, found: Mapping[str, Any]) -> str:
    """The page with the table in its place."""
    return SECTION.sub(lambda section: f"{section[1]}{table(found)}\n{section[2]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Build, run, print and write; 1 where a part fails, 2 where an environment cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted.compat", description=__doc__)
    names = [each.name for each in ENVIRONMENTS], [part.name for part in PARTS]
    parser.add_argument("--environments", nargs="+", choices=names[0], default=names[0], metavar="NAME")
    parser.add_argument("--parts", nargs="+", choices=names[1], default=names[1], metavar="NAME")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "compat", help="of the environments")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="default: benchmarks/results")
    arguments = parser.parse_args(argv)
    path, folder = arguments.results / "compat.json", arguments.folder.resolve()
    found = json.loads(path.read_text()) if path.exists() else {"environments": {}}
    failed = False
    for environment in ENVIRONMENTS:
        if environment.name not in arguments.environments:
            continue
        try:
            python = prepared(environment, folder)
            versions = versions_of(python)
        except subprocess.CalledProcessError as error:
            print(f"benchmarks.counted.compat: error: {environment.name} cannot be built: {error}", file=sys.stderr)
            return 2
        before = found["environments"].get(environment.name)
        parts = before["parts"] if before and before["versions"] == versions else {}
        for part in PARTS:
            if part.name in arguments.parts:
                log = folder / environment.name / f"{part.name}.log"
                print(f"== {environment.name}: {part.name}, {log}", flush=True)
                parts[part.name] = outcome = {"date": today(), **run(part, python, log)}
                failed |= not outcome["passed"]
                print(f"{cell(outcome)}, {outcome['seconds']} s\n{outcome.get('output', '')}".rstrip(), flush=True)
                found["environments"][environment.name] = {"versions": versions, "parts": parts}
                write(path, json.dumps(found, indent=1) + "\n")
    print(f"\n{table(found)}")
    if arguments.results == RESULTS:
        write(PAGE, filled(PAGE.read_text(encoding="utf-8"), found))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
