"""Other versions: what is built, what is run there, and what is said of it. Nothing is built or run here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.counted import compat
from benchmarks.counted.compat import ENVIRONMENTS, PAGE, PARTS, Environment, Part
from benchmarks.files import RESULTS

ROOT = Path(__file__).parents[2]
VERSIONS = {"triton_attn": "0.1.0", "Python": "3.11.7", "torch": "2.8.0", "triton": "3.4.0"}


def part(code: str, name: str = "interpreter") -> Part:
    """Runs this in place of the part."""
    return Part(name, ("pytest", code))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run these parts, each a program, in environments that are this one; the status, the file and what was said."""
    monkeypatch.setattr(compat, "prepared", lambda *_: Path(sys.executable))
    monkeypatch.setattr(compat, "versions_of", lambda _: VERSIONS)
    (tmp_path / "pytest.py").write_text("import sys; exec(sys.argv[1])")
    start = subprocess.run

    def beside(words: list[str], **options: Any) -> Any:
        return start([words[0], str(tmp_path / "pytest.py"), *words[3:]], **options)

    def run(parts: list[Part], *options: str) -> tuple[int, Any, str]:
        with monkeypatch.context() as context:
            context.setattr(compat, "PARTS", tuple(parts))
            context.setattr(subprocess, "run", beside)
            status = compat.main(["--results", str(tmp_path), "--folder", str(tmp_path), *options])
        return status, json.loads((tmp_path / "compat.json").read_text()), capsys.readouterr().out

    return run


def test_what_passes_and_what_fails_is_written(run: Any, tmp_path: Path) -> None:
    good = part("print('....'); print('12 passed, 3 deselected in 4.00s')")
    bad = part("print('FAILED a'); print('1 failed, 2 passed in 4.00s'); sys.exit(1)", "compile")
    status, found, said = run([good, bad])
    assert status == 1
    assert found["environments"].keys() == {"torch-2.8", "torch-2.11"}
    parts = found["environments"]["torch-2.8"]["parts"]
    assert (parts["interpreter"]["passed"], parts["interpreter"]["said"]) == (True, "12 passed")
    assert "output" not in parts["interpreter"]
    assert (parts["compile"]["passed"], parts["compile"]["said"]) == (False, "1 failed, 2 passed")
    assert "FAILED a" in parts["compile"]["output"]
    assert (tmp_path / "torch-2.8" / "compile.log").read_text() == "FAILED a\n1 failed, 2 passed in 4.00s\n"
    assert "| compile | **fails** (1 failed, 2 passed) | **fails** (1 failed, 2 passed) |" in said
    assert "| interpreter | passes (12 passed) |" in said


def test_a_part_by_itself_leaves_the_others(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = part("print('1 passed in 1s')"), part("", "compile")
    assert run([one, other])[0] == 0
    status, found, _ = run([one, part("sys.exit(1)", "compile")], "--parts", "compile", "--environments", "torch-2.8")
    assert status == 1
    assert found["environments"]["torch-2.8"]["parts"]["interpreter"]["passed"]
    assert not found["environments"]["torch-2.8"]["parts"]["compile"]["passed"]
    assert found["environments"]["torch-2.11"]["parts"]["compile"]["passed"]
    # What was found with other versions says nothing of these.
    monkeypatch.setattr(compat, "versions_of", lambda _: {**VERSIONS, "torch": "2.8.1"})
    _, found, said = run([one, other], "--parts", "compile")
    assert found["environments"]["torch-2.8"]["parts"].keys() == {"compile"}
    assert "| interpreter | not run | not run |" in said


def test_the_interpreter_is_not_left_on_for_the_compiler(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run([part("import os; sys.exit('TRITON_INTERPRET' in os.environ)")])[0] == 0


def test_the_last_word() -> None:
    assert compat.last_word("9 passed\nSKIPPED [1] a\n8 passed, 2 skipped, 1 warning in 2.0s") == "8 passed, 2 skipped"
    assert compat.last_word("1 of 9 kinds spill: a_kernel\n\nWritten: a") == "1 of 9 kinds spill: a_kernel"
    assert compat.last_word("well") == ""


def test_an_environment_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: commands.append(words))
    monkeypatch.setattr(compat, "interpreter", lambda _: sys.executable)
    environment = ENVIRONMENTS[0]
    python = compat.prepared(environment, tmp_path)
    assert python == tmp_path / "torch-2.8" / "bin" / "python"
    assert [words[1:3] for words in commands] == [["-m", "venv"], ["-m", "pip"]]
    assert {"torch==2.8.*", "triton==3.4.*"} <= set(commands[1])
    assert any(word.startswith("pytest==") for word in commands[1])
    assert compat.prepared(environment, tmp_path) == python
    assert len(commands) == 2
    # With another wish it is made anew.
    compat.prepared(Environment("2.8", "3.4", environment.python, numpy="1.26.4"), tmp_path)
    assert len(commands) == 4


def test_what_cannot_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(words: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, words)

    monkeypatch.setattr(subprocess, "run", refuse)
    assert compat.main(["--results", str(tmp_path), "--folder", str(tmp_path)]) == 2
    assert "torch-2.8 cannot be built" in capsys.readouterr().err


def test_the_oldest_versions_are_those_that_are_promised() -> None:
    promised = (ROOT / "pyproject.toml").read_text()
    assert f'"torch>={ENVIRONMENTS[0].torch}"' in promised
    assert f'"triton>={ENVIRONMENTS[0].triton};' in promised


def test_what_is_committed() -> None:
    found = json.loads((RESULTS / "compat.json").read_text())
    page = PAGE.read_text()
    assert compat.filled(page, found) == page
    assert compat.table(found) in page
    assert list(found["environments"]) == [each.name for each in ENVIRONMENTS]
    for environment in found["environments"].values():
        assert environment["parts"].keys() <= {part.name for part in PARTS}
        assert all(outcome["passed"] for outcome in environment["parts"].values())
