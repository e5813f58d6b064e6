"""``triton_attn.tune`` and ``triton-attn tune``: what is searched, what is kept, and what is left alone."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import triton_attn
from triton_attn import cli
from triton_attn.ops import launch
from triton_attn.tune import Call, calls, tune_calls
from triton_attn.tune_command import duration, image_batch
from triton_attn.tuning import search, selection, tables
from triton_attn.tuning.keys import Key

TUNE: Any = sys.modules["triton_attn.tune"]  # the package has a function of that name


class Net(nn.Module):
    """SE twice at one size and once at another, the second with the tail of a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 1, stride=2)
        self.one, self.two, self.three = (triton_attn.SEBlock(16, reduction=4) for _ in range(3))
        self.last = triton_attn.ECABlock(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(self.three(self.two(self.one(x)), shortcut=x)))


def image(channels_last: bool = True, channels: int = 16) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(2, channels, 8, 8).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_the_calls_of_a_network(channels_last: bool) -> None:
    model, x = Net(), image(channels_last)
    model.one.train(False)
    state = copy.deepcopy(model.state_dict())
    found = calls(model, x)
    assert [type(call.block).__name__ for call in found] == ["SEBlock", "SEBlock", "ECABlock"]
    assert [list(call.inputs) for call in found] == [["x"], ["x", "shortcut"], ["x"]]
    assert [tuple(call.inputs["x"].shape) for call in found] == [(2, 16, 8, 8), (2, 16, 8, 8), (2, 32, 4, 4)]
    for call in found:
        for t in call.inputs.values():
            assert t.device.type == "meta"
            assert t.is_contiguous(memory_format=torch.channels_last) == channels_last
    # Nothing about the network has changed.
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert [model.training, model.one.training, model.two.training] == [True, False, True]
    assert not model.one._forward_pre_hooks


def test_a_network_without_attention() -> None:
    with pytest.raises(ValueError, match="model has no attention blocks to tune: Conv2d"):
        calls(nn.Conv2d(16, 16, 1), image())


def test_where_triton_does_not_serve() -> None:
    with pytest.raises(triton_attn.BackendError, match="x is on cpu, not on a GPU"):
        triton_attn.tune(Net(), image())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        triton_attn.tune("resnet50", image())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor on a GPU, got tuple"):
        triton_attn.tune(Net(), (2, 16, 8, 8))  # type: ignore[arg-type]


@pytest.mark.interpreter
def test_a_tuning(tmp_path: Path) -> None:
    path, lines = tmp_path / "table.json", []
    model = Net()
    tuned = triton_attn.tune(model, image(), path=path, progress=lines.append)
    names = [key.kernel for key in tuned.found]
    assert sorted(names) == sorted(
        2 * [f"{step}_{way}_kernel" for step in ("squeeze", "apply_gate") for way in ("fwd", "bwd")]
    )
    assert len(lines) == len(tuned.found) == 8
    assert tuned.left_out == []
    table = tables.read(path)
    assert table.entries.keys() == tuned.found.keys()
    assert table.device == "interpreter"
    assert table.versions["torch"] == torch.__version__
    for key, found in tuned.found.items():
        config = {**found.rule, **table.entries[key].config}
        assert config == found.config
        assert table.entries[key].tried == len(found.timings) > 1
    text = str(tuned)
    assert str(path) in text
    assert all(str(key) in text for key in tuned.found)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.interpreter
def test_only_the_forward_and_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    old = Key("apply_gate_fwd_kernel", "float16", "contiguous", (2048,), 64)
    entry = tables.Entry({"BLOCK_P": 64, "SPAN": 256}, 1e-4, 2e-4, 9)
    tables.write(path, tables.Table("interpreter", "interpreter", entries={old: entry}))
    fast(monkeypatch)
    tuned = triton_attn.tune(triton_attn.SEBlock(16, 4), image(), path=path, training=False)
    assert {key.kernel for key in tuned.found} == {"squeeze_fwd_kernel", "apply_gate_fwd_kernel"}
    assert tables.read(path).entries.keys() == {old, *tuned.found}


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timing: the widest of everything is the fastest."""

    def time_all(_: Any, configs: list[dict[str, int]]) -> list[tuple[dict[str, int], float]]:
        return [(config, 1.0 / sum(config.values())) for config in configs]

    monkeypatch.setattr(search, "time_all", time_all)


@pytest.mark.interpreter
def test_a_tuned_launch_takes_its_config_and_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    block, x = triton_attn.SEBlock(16, 4), image()
    tuned = triton_attn.tune(block, x, path=tmp_path / "table.json", training=False)
    started: list[dict[str, Any]] = []
    start = launch.start

    def note(kernel: Any, grid: Any, device: Any, **arguments: Any) -> None:
        started.append({"kernel": kernel.fn.__name__, **arguments})
        start(kernel, grid, device, **arguments)

    with torch.no_grad():
        expected = block(x)
        monkeypatch.setattr(launch, "start", note)
        with selection.use_entries(tables.read(tmp_path / "table.json").entries):
            y = block(x)
    assert torch.equal(y, expected)
    for key, found in tuned.found.items():
        assert found.config != found.rule
        (each,) = (arguments for arguments in started if arguments["kernel"] == key.kernel)
        assert {name: each[name] for name in found.config} == found.config


@pytest.mark.interpreter
def test_a_first_call_searches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton, "autotune", lambda *_, **__: pytest.fail("a search"))
    triton_attn.SEBlock(16, 4)(image()).sum().backward()


@pytest.mark.interpreter
def test_a_budget_and_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    path = tmp_path / "table.json"
    tuned = triton_attn.tune(Net(), image(), path=path, budget=1e-9)
    assert tuned.found == {}
    assert len(tuned.left_out) == 8
    assert "left out, the budget was spent" in str(tuned)
    assert not path.exists()

    def interrupt(line: str) -> None:
        if line.startswith("[3]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        triton_attn.tune(Net(), image(), path=path, progress=interrupt)
    assert len(tables.read(path).entries) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["table.json"]
    # A second tuning goes on from there, also within a budget that is spent at once.
    tuned = triton_attn.tune(Net(), image(), path=path)
    assert (len(tuned.kept), len(tuned.found), len(tables.read(path).entries)) == (3, 5, 8)
    assert "3 more are in the table, and were not searched again" in str(tuned)
    tuned = triton_attn.tune(Net(), image(), path=path, budget=1e-9)
    assert (len(tuned.kept), tuned.left_out) == (8, [])
    assert len(triton_attn.tune(Net(), image(), path=path, again=True).found) == 8
    # What other versions found is searched again.
    path.write_text(path.read_text().replace('"torch": "', '"torch": "0.'))
    assert len(triton_attn.tune(Net(), image(), path=path).found) == 8
    for budget in (0, -1.0, float("nan"), "5m", True):
        with pytest.raises(ValueError, match="budget must be a positive number of seconds"):
            triton_attn.tune(Net(), image(), path=path, budget=budget)


@pytest.mark.interpreter
def test_a_table_that_cannot_be_written_is_told_before_anything_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "time_all", lambda *_: pytest.fail("a search"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        triton_attn.tune(Net(), image(), path=tmp_path / "file" / "table.json")
    words = ["tune", "--model", "resnet18", "--attention", "se", "--input", "1x3x32x32", "--dtype", "fp32"]
    assert cli.main([*words, "--output", str(tmp_path / "file" / "table.json")]) == 2
    assert "--output: " in capsys.readouterr().err


@pytest.mark.interpreter
def test_a_call_without_room_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    step = TUNE._step

    def crowded(call: Call, *rest: Any) -> None:
        if "shortcut" in call.inputs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB")
        step(call, *rest)

    monkeypatch.setattr(TUNE, "_step", crowded)
    with torch.inference_mode():
        tuned = triton_attn.tune(Net(), image(), path=tmp_path / "table.json")
    assert tuned.found
    assert tuned.failed == [("SEBlock on (2, 16, 8, 8) and (2, 16, 8, 8)", "CUDA out of memory")]
    assert "SEBlock on (2, 16, 8, 8) and (2, 16, 8, 8): left out, CUDA out of memory" in str(tuned)


@pytest.mark.interpreter
def test_two_tunings_at_a_time_keep_what_both_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    path, found = tmp_path / "table.json", dict[Key, search.Found]()

    def another(_: str) -> None:
        if not found:
            block, x = triton_attn.ECABlock(32), image(channels=32)
            found.update(triton_attn.tune(block, x, path=path, training=False).found)

    network = calls(triton_attn.SEBlock(16, 4), image())
    found |= tune_calls(network, image(), path=path, training=False, progress=another).found
    assert tables.read(path).entries.keys() == found.keys()
    assert len({key.channels for key in found}) == 2


@pytest.mark.interpreter
def test_every_search_is_told_when_the_table_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    path, told = tmp_path / "table.json", list[str]()

    def progress(line: str) -> None:
        told.append(line)
        assert len(tables.read(path).entries) == len(told)

    tuned = triton_attn.tune(triton_attn.SEBlock(16, 4), image(), path=path, training=False, progress=progress)
    assert [key.kernel for key in tuned.found] == ["squeeze_fwd_kernel", "apply_gate_fwd_kernel"]
    assert all(str(key) in line for key, line in zip(tuned.found, told, strict=True))


@pytest.mark.interpreter
@pytest.mark.parametrize("text", ["notes of mine", json.dumps({"format": 1, "device": "NVIDIA H200"})])
def test_a_file_of_another_kind_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"path: .*precious\.txt: expected .*; it is left as it is"):
        triton_attn.tune(Net(), image(), path=path)
    assert path.read_text() == text


@pytest.mark.interpreter
def test_a_broken_table_of_the_users_own_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path))
    (tmp_path / "interpreter.json").write_text("{")
    lines: list[str] = []
    tuned = triton_attn.tune(triton_attn.SEBlock(16, 4), image(), training=False, progress=lines.append)
    assert tuned.path == tmp_path / "interpreter.json"
    assert "made anew" in lines[0]
    assert tables.read(tuned.path).entries.keys() == tuned.found.keys()


@pytest.mark.interpreter
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    path = tmp_path / "table.json"
    words = ["tune", "--model", "resnet18", "--attention", "se,pixel", "--where", "layer3", "--input", "2x3x32x32"]
    assert cli.main([*words, "--dtype", "fp16", "--layout", "contiguous", "--inference", "--output", str(path)]) == 0
    printed = capsys.readouterr()
    assert "say nothing about a GPU" in printed.err
    entries = tables.read(path).entries
    assert {(key.dtype, key.layout, key.channels, key.positions) for key in entries} == {
        ("float16", "contiguous", (256,), 4)
    }
    assert {key.kernel for key in entries} >= {"squeeze_fwd_kernel", "apply_gate_fwd_kernel"}
    assert all(str(key) in printed.out for key in entries)

    path.write_text("mine")
    assert cli.main([*words, "--output", str(path)]) == 2
    assert "precious" not in capsys.readouterr().err
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--device: tuning needs a GPU, got 'cuda', and there are 0 here"),
        (["--device", "gpu"], "--device: expected a GPU such as cuda or cuda:1, got 'gpu'"),
        (["--device", "cpu"], "--device: tuning needs a GPU, got 'cpu'"),
    ],
)
def test_the_command_without_a_gpu(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert cli.main(["tune", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "soon"], "expected a time such as 90s, 5m or 1h, got 'soon'"),
        (["--budget", "0s"], "expected a time"),
        (["--input", "64x224x224"], "expected images as BATCHx3xHEIGHTxWIDTH"),
        (["--input", "0x3x8x8"], "expected images as"),
        (["--input", "1x4x8x8"], "expected images as"),
        (["--attention", "se,sf"], "unknown sf, expected some of cbam"),
        (["--where", "roof"], "unknown roof, expected some of stem"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_bad_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tune", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_times_and_sizes() -> None:
    assert [duration(text) for text in ("300", "90s", "5m", "1.5h")] == [300, 90, 300, 5400]
    assert image_batch("64x3x224x192") == (64, 3, 224, 192)
