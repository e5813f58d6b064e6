"""A pytest plugin for the gpu lane where time is short: ``-p benchmarks.lane --record FILE --shard 1/8 --until TIME``.

Every test is written down as it begins and as it ends, a line of JSON each, so that no crash and no cut-off loses what
was found, and a later call goes on from there. Of every test function the first case comes first, then the second:
whoever stops early has seen something of everything.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LATE, LOST = 6, 3  # exit statuses: the time is over; the GPU answers no more
ATTEMPTS = 2  # at a test during which the process ended
TEXT = 1500  # characters of a failure


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lane")
    group.addoption("--record", type=Path, metavar="FILE", help="of tests begun and ended, which are not run again")
    group.addoption("--shard", type=_shard, default=(0, 1), metavar="I/N", help="run the I-th of N parts")
    group.addoption("--until", type=float, metavar="TIME", help="begin no test after that, as date +%%s has it")


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part) - 1, int(parts)


class Record:
    """The file: which tests ended and how, and how often each was begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun: Counter[str] = Counter()
        self.ended: dict[str, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                found = json.loads(line)
            except ValueError:  # the process ended within the line
                continue
            if "begun" in found:
                self.begun[found["begun"]] += 1
            else:
                self.ended[found["test"]] = found

    def note(self, **line: Any) -> None:
        """Append a line; several processes may."""
        data = (json.dumps(line) + "\n").encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, data)
        finally:
            os.close(file)

    def is_done(self, test: str) -> bool:
        """Whether it ended, or would end the process once more."""
        return test in self.ended or self.begun[test] >= ATTEMPTS

    def outcome(self) -> dict[str, Any]:
        """How many passed, failed and were skipped, what failed and why others were skipped."""
        crashed = {test for test, times in self.begun.items() if test not in self.ended and times >= ATTEMPTS}
        by = {kind: [t for t, each in self.ended.items() if each["outcome"] == kind] for kind in ("passed", "skipped")}
        failures = {test: each["text"] for test, each in self.ended.items() if each["outcome"] == "failed"}
        failures |= dict.fromkeys(crashed, "the process ended while it ran")
        return {
            "passed": len(by["passed"]),
            "failed": len(failures),
            "skipped": len(by["skipped"]),
            "failures": dict(sorted(failures.items())),
            "skips": sorted({self.ended[test]["text"] for test in by["skipped"]}),
        }


def breadth_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The first case of every function, then the second of every …"""
    seen: Counter[str] = Counter()
    order = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        order.append(seen[function])
        seen[function] += 1
    return [item for _, item in sorted(zip(order, items, strict=True), key=lambda each: each[0])]


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--record"):
        config.pluginmanager.register(Recorder(config, Record(path)))


class Recorder:
    """Chooses, writes down and stops."""

    def __init__(self, config: pytest.Config, record: Record) -> None:
        self.record, self.until = record, config.getoption("--until")
        self.part, self.parts = config.getoption("--shard")
        self.reports: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)  # behind the choice of the lane
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        own = [each for each in breadth_first(items)[self.part :: self.parts] if not self.record.is_done(each.nodeid)]
        config.hook.pytest_deselected(items=[each for each in items if each not in own])
        items[:] = own

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.record.note(begun=item.nodeid)
        self.reports = []
        result = yield
        self.record.note(test=item.nodeid, **_said(self.reports))
        failed = "".join(report.longreprtext for report in self.reports if report.failed)
        if "CUDA error" in failed or "Triton Error [CUDA]" in failed:  # as a rule all that comes behind it fails, too
            pytest.exit("the GPU may answer no more", returncode=LOST)
        if self.until is not None and time.time() > self.until:
            pytest.exit("the time limit is spent", returncode=LATE)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)


def _said(reports: list[pytest.TestReport]) -> dict[str, Any]:
    """How a test ended, by the reports of its setup, itself and its teardown."""
    seconds = round(sum(report.duration for report in reports), 3)
    for report in reports:
        if report.failed:
            return {"outcome": "failed", "seconds": seconds, "text": report.longreprtext[-TEXT:]}
        if report.skipped:
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            return {"outcome": "skipped", "seconds": seconds, "text": text}
    return {"outcome": "passed", "seconds": seconds, "text": ""}
