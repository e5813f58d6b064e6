"""The lanes: ``pytest --lane NAME`` runs the tests of one; said again, of several in the same processes.

plain        no Triton: networks, training, the command line (the default)
interpreter  kernels on the CPU, by Triton's interpreter
compile      kernels to machine code, without a GPU
execute      kernels as compiled for a GPU, executed on the CPU, thread by thread
gpu          on a GPU, skipped where there is none; it needs pytest alone, none of its plugins and not hypothesis

The interpreter shares a process with no other: Triton is imported either for it or for the compiler.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.thinning import kept

LANES = ("plain", "interpreter", "compile", "execute", "gpu")
# How many values of a test's parameters meet in some case, whatever they are: the slow lanes take any value once, and
# have their drawn cases and fixed lists beside that. The gpu lane leaves nothing out.
TOGETHER = {"interpreter": 1, "compile": 1, "gpu": 99}
# A file of one lane alone.
WHOLE = re.compile(r"^pytestmark = (?:\[\s*)?pytest\.mark\.(\w+)", re.MULTILINE)

try:
    import hypothesis
except ModuleNotFoundError:  # pytest_ignore_collect leaves out what needs it
    pass
else:
    hypothesis.settings.register_profile(
        "project",
        deadline=None,
        derandomize=True,
        print_blob=True,
        # A failing example is small already, and shrinking it under the interpreter takes minutes.
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", choices=LANES, action="append", help="which tests to run (plain); may be repeated")
    parser.addoption("--every-case", action="store_true", help="and none left out (see tests/thinning.py)")


def pytest_configure(config: pytest.Config) -> None:
    # Before anything imports Triton: later is too late.
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.pop("TRITON_ATTN_BACKEND", None)
    if "interpreter" in lanes(config):
        if len(lanes(config)) > 1:
            raise pytest.UsageError(f"--lane interpreter is run alone, got {', '.join(lanes(config))}")
        os.environ["TRITON_INTERPRET"] = "1"
        from benchmarks.counted.interpreter import patch_once_a_launch

        patch_once_a_launch()


def lanes(config: pytest.Config) -> list[str]:
    return config.getoption("--lane") or ["plain"]


def lane_of(item: pytest.Item) -> str:
    return next((lane for lane in LANES if item.get_closest_marker(lane)), "plain")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that do not name a lane: they take time to import, or what a machine with a GPU has not.

    And folders with no other files, for their conftest.py.
    """
    wanted = lanes(config)
    if "plain" in wanted:
        whole = collection_path.suffix == ".py" and WHOLE.search(collection_path.read_text(encoding="utf-8"))
        return True if whole and whole[1] in {*LANES} - {*wanted} else None
    files = collection_path.rglob("*.py") if collection_path.is_dir() else [collection_path]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix == ".py"]
    return None if any(f"mark.{lane}" in text for lane in wanted for text in texts) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {item for item in items if lane_of(item) in lanes(config)}
    if not config.getoption("--every-case"):
        wanted = _thinned([item for item in items if item in wanted])
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = [item for item in items if item in wanted]


def pytest_collection_finish() -> None:
    """What is there stays: the collector need not look at PyTorch's modules again and again."""
    gc.collect()
    gc.freeze()


def _thinned(items: list[pytest.Item]) -> set[pytest.Item]:
    """The cases to run."""
    tests: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        tests.setdefault((lane_of(item), item.nodeid.partition("[")[0]), []).append(item)
    wanted: set[pytest.Item] = set()
    for (lane, _), cases in tests.items():
        # A value is given to all of its cases, the same object.
        values = [tuple(map(id, item.callspec.params.values())) if hasattr(item, "callspec") else () for item in cases]
        wanted.update([cases[i] for i in kept(values, TOGETHER.get(lane, 2))] if len(values[0]) > 1 else cases)
    return wanted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip what this Triton cannot compile here."""
    try:
        return (yield)
    except Exception as error:
        if lane_of(item) == "compile":
            from benchmarks.counted.machine_code import TargetError

            if isinstance(error, TargetError):
                pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run side by side, one to a core: threads of their own would only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are started within the test."""
    from triton_attn.ops import launch

    names: list[str] = []
    start = launch.start

    def watched(kernel: Any, *arguments: Any, **more: Any) -> None:
        names.append(kernel.fn.__name__)
        start(kernel, *arguments, **more)

    monkeypatch.setattr(launch, "start", watched)
    return names
