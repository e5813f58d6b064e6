"""A pytest plugin for the lane within a time budget: each test is a line of JSON as it ends, and is not run again.

Until the code is another: lines of other code count no more.

``pytest tests/gpu --lane gpu -p tests.gpu.record --record FILE.jsonl``. Of every test function the first case comes
first. At the end all of it is counted in ``FILE.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.files import code, device_name, today, versions, write

KNOWN = pytest.StashKey[Any]()
TEXT = 1500  # characters of a failure
LOST = 3  # exit status: the GPU answers no more


def own_code() -> str:
    """Whose outcomes these are."""
    return code("triton_attn", "reference", "tests")


def ended(record: Path) -> dict[str, dict[str, Any]]:
    """By test how it ended; what failed once has failed, whatever became of its process."""
    found: dict[str, dict[str, Any]] = {}
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        with contextlib.suppress(ValueError):  # the process ended within the line
            each = json.loads(line)
            if each["code"] == own_code() and found.get(each["test"], {}).get("outcome") != "failed":
                found[each["test"]] = each
    return found


def outcome(record: Path) -> dict[str, Any]:
    """How many passed, failed and were skipped, what failed, and why others were skipped."""
    found = ended(record)
    by = Counter(line["outcome"] for line in found.values())
    failures = {test: line["text"] for test, line in sorted(found.items()) if line["outcome"] == "failed"}
    skips = sorted({line["text"] for line in found.values() if line["outcome"] == "skipped"})
    return {**{how: by[how] for how in ("passed", "failed", "skipped")}, "failures": failures, "skips": skips}


class Record:
    """Writes tests down, in the process that is told of all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_sessionfinish(self) -> None:
        head = {"device": device_name(), "versions": versions("CUDA", "ROCm"), "date": today()}
        write(self.path.with_suffix(".json"), json.dumps({**head, **outcome(self.path)}, indent=1) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext[-TEXT:]
        if report.when == "call" or not report.passed:
            with self.path.open("a", encoding="utf-8") as file:
                line = {"test": report.nodeid, "outcome": report.outcome, "text": text, "code": own_code()}
                file.write(json.dumps(line) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="of tests that ended, which are not run again")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # xdist's: all of them collect the same
        config.stash[KNOWN] = config.workerinput["known"]
    else:
        config.stash[KNOWN] = [*ended(config.getoption("--record"))]
        config.pluginmanager.register(Record(config.getoption("--record")))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["known"] = node.config.stash[KNOWN]


@pytest.hookimpl(trylast=True)  # behind the choice of the lane
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests that did not end before, the first cases of all functions first."""
    seen: Counter[str] = Counter()
    known, order = set(config.stash[KNOWN]), {}
    for item in items:
        function = item.nodeid.partition("[")[0]
        order[item] = seen[function]
        seen[function] += 1
    config.hook.pytest_deselected(items=[each for each in items if each.nodeid in known])
    items[:] = sorted((each for each in items if each.nodeid not in known), key=order.__getitem__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Behind a fault of the GPU another process goes on: in this one all would fail."""
    result = yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(LOST)
    return result
