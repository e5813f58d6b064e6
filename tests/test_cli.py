"""The command line itself: commands, help, missing extras."""

from __future__ import annotations

import importlib
import os

import pytest

from tests import fresh
from triton_attn import cli
from triton_attn.version import __version__


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for command in ("train", "eval", "predict", "show", "export", "info"):
        assert f"    {command} " in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["trian"], ["train", "--epoch", "3"]])
def test_words_it_does_not_know_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(words)
    assert exit.value.code == 2
    assert "usage: triton-attn" in capsys.readouterr().err


def test_help_needs_no_extra_packages() -> None:
    code = (
        "import sys\n"
        "for name in ('accelerate', 'torchvision', 'matplotlib', 'sklearn', 'torchmetrics', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "from triton_attn.cli import main\n"
        "main(['--help'])\n"
    )
    assert "train" in fresh.python(code).stdout


@pytest.mark.parametrize(("missing", "extra"), [("torchvision", "train"), ("onnxruntime", "export")])
def test_missing_extras_say_what_to_install(
    missing: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(_: str) -> object:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", without)
    assert cli.main(["train"]) == 2
    line = capsys.readouterr().err
    assert missing in line
    assert f'pip install "triton_attn[{extra}]"' in line
    assert line.count("\n") == 1


def test_other_missing_modules_are_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_: str) -> object:
        raise ModuleNotFoundError("No module named 'triton_attn.nowhere'", name="triton_attn.nowhere")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["train"])


def test_it_runs_as_a_module() -> None:
    assert __version__ in fresh.module("triton_attn.cli", "--version").stdout


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = fresh.module("triton_attn.cli", "info", stdout=writer, status=1)
    os.close(writer)
    assert done.stderr == ""


def test_names_in_an_error_say_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "a\x1b]0;evil\x07\u2028b\udce9\nc", "digits:1"]) == 2
    assert capsys.readouterr().err.startswith("triton-attn: error: CHECKPOINT: a\\x1b]0;evil\\x07 b\\udce9 c: no such")


@pytest.mark.parametrize("number", [28, 36, 13, 30])
def test_what_the_machine_refuses_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_: object) -> int:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("triton_attn.info.run", refused)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == f"triton-attn: error: /some/file: {os.strerror(number)}\n"


def test_other_errors_of_the_system_are_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise FileNotFoundError(2, "No such file or directory", "/some/file")

    monkeypatch.setattr("triton_attn.info.run", broken)
    with pytest.raises(FileNotFoundError):
        cli.main(["info"])


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["train", "--output", ""], "--output"),
        (["train", "--data", ""], "--data"),
        (["train", "--weights", "a\0"], "--weights"),
        (["tune", "--output", ""], "--output"),
        (["eval", ""], "CHECKPOINT"),
        (["show", "x", "digits:1", ""], "IMAGE"),
    ],
)
def test_a_path_is_not_empty(words: list[str], called: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(f"triton-attn: error: {called}: expected a text that is not empty")
