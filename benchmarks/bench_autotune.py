"""What tuning costs and what it gains: the rule's config, the table's, and the best of all that were tried.

The launches of blocks at ResNet-50's shapes are searched, each over its whole space. ``results/<device>/autotune.json``
keeps, for each, what the rule's config takes, the one that the table gets (the fastest that changes no bit), and the
fastest at all; and what the first call of a block costs in a process of its own, with nothing compiled before:
without a table, and with one. Nothing is searched there. The table itself is ``results/<device>/tuned.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

import triton_attn
from benchmarks.bench_blocks import SHAPES
from benchmarks.files import versions, write
from benchmarks.suite import REPLAY, device, device_name, on_gpu, slug
from triton_attn.tune import Call, tune_calls
from triton_attn.tuning import tables
from triton_attn.tuning.keys import Key
from triton_attn.tuning.search import Found

PROVIDERS = ("rule", "table", "best")
# Blocks whose launches are not another's too: what they share is found once.
BLOCKS = ("se", "eca", "coordinate", "cbam", "pixel", "gate", "nonlocal")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    """A block at a site, whose launches are searched."""

    block: str
    site: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str

    def __str__(self) -> str:
        return "-".join((self.block, self.site, "x".join(map(str, self.shape)), self.dtype, self.layout))


def cases(size: str) -> Iterator[Case]:
    """Every case of a size, most wanted first."""
    if size == "tiny":
        yield Case("eca", "tiny", SHAPES["tiny"]["tiny"], "float32", "channels_last")
        return
    if size == "small":
        return  # on a CPU there is nothing to tune
    sites = ("layer1", "layer3", "layer2", "layer4", "stem")
    for layout in ("channels_last",) if size == "goal" else ("channels_last", "contiguous"):
        for dtype in ("bfloat16",) if size == "goal" else ("bfloat16", "float32"):
            for site in sites:
                for block in BLOCKS:
                    yield Case(block, site, SHAPES["full"][site], dtype, layout)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        size = metafunc.config.getoption("--size") or ("full" if on_gpu() else "small")
        metafunc.parametrize("case", list(cases(size)), ids=str)


class Session:
    """The searches of this session, and of earlier ones on this device with these versions."""

    def __init__(self, results: Path, limit: float | None, keep: bool) -> None:
        self.path, self.table = results / slug() / "autotune.json", results / slug() / "tuned.json"
        self.head = {"suite": "autotune", "device": device_name(), "versions": versions("CUDA", "ROCm")}
        self.keep = keep
        self.end = None if limit is None else time.monotonic() + limit
        self.file: dict[str, Any] = {"first_call": {}, "searched": [], "cases": {}}
        if self.path.exists():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if all(found.get(key) == value for key, value in self.head.items()):
                self.file = {key: found[key] for key in self.file}

    def left(self) -> float | None:
        """Seconds."""
        return None if self.end is None else self.end - time.monotonic()

    def search(self, case: Case) -> None:
        """Search the launches of a case, and write what was found."""
        left = self.left()
        if left is not None and left <= 0:
            pytest.skip("the time limit is spent")
        block: Any = triton_attn.create_attention(case.block, case.shape[1], dtype=getattr(torch, case.dtype))
        x = torch.empty(case.shape, dtype=getattr(torch, case.dtype), device="meta")
        if case.layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        like = torch.empty((1, 1, 1, 1), dtype=x.dtype, device=device())
        calls = [Call(block, {"x": x, "shortcut": x})]
        # Blocks share kernels, and so keys.
        tuned = tune_calls(calls, like, budget=left, path=self.table, skip=lambda key: str(key) in self.file["cases"])
        for key, found in tuned.found.items():
            self.file["cases"][str(key)] = record(key, found)
        if not tuned.left_out:
            self.file["searched"] = sorted({*self.file["searched"], str(case)})
        self.save()

    def save(self) -> None:
        """Write what there is."""
        cases = dict(sorted(self.file["cases"].items()))
        write(self.path, json.dumps({**self.head, **self.file, "cases": cases}, indent=1) + "\n")


def record(key: Key, found: Found) -> dict[str, Any]:
    """What the file says of a launch; seconds are medians."""
    best = min(found.timings, key=lambda each: each[1])
    return {
        **asdict(key),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "configs": len(found.timings),
        "other_bits": len(found.rejected),
        "seconds": {"rule": found.rule_seconds, "table": found.seconds, "best": best[1]},
        "config": {"rule": found.rule, "table": found.config, "best": best[0]},
    }


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Everything searched."""
    option = request.config.getoption
    found = Session(option("--results"), option("--limit"), option("--keep"))
    yield found
    if found.path.exists():
        print(f"\nwritten: {found.path}, {found.table}")


FIRST_CALL = """
import json, sys, time
import torch
import triton_attn
from triton_attn.tuning import selection, tables
from pathlib import Path

name, channels, side, dtype, device, table = json.loads(sys.argv[1])
entries = tables.read(Path(table)).entries if table else {}
block = triton_attn.create_attention(name, channels, device=device, dtype=getattr(torch, dtype))
x = torch.randn(2, channels, side, side, device=device, dtype=getattr(torch, dtype), requires_grad=True)
def step():
    start = time.perf_counter()
    block(x).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
with selection.use_entries(entries):
    print(json.dumps([step(), step()]))
"""


def first_call(case: Case, table: Path | None) -> tuple[float, float]:
    """Seconds of the first and the second training step of a block in a new process, with nothing compiled before."""
    given = [case.block, case.shape[1], case.shape[2], case.dtype, device().type, str(table) if table else None]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-c", FIRST_CALL, json.dumps(given)],
            cwd=ROOT,
            env={**os.environ, "TRITON_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    first, second = json.loads(done.stdout.splitlines()[-1])
    return first, second


@pytest.mark.benchmark(timer=REPLAY, warmup=False)
def test_launches(benchmark: Any, session: Session, case: Case) -> None:
    """Search the launches of a case; what pytest-benchmark is told is the sum of the table's."""
    if not (session.keep and str(case) in session.file["searched"]):
        session.search(case)
    seconds = [each["seconds"] for each in session.file["cases"].values()]
    benchmark.group = "all launches searched so far, one after the other"
    benchmark.extra_info["seconds"] = {who: sum(each[who] for each in seconds) for who in PROVIDERS}
    REPLAY.load([sum(each["table"] for each in seconds)])
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)


def test_first_call(session: Session, request: pytest.FixtureRequest) -> None:
    """A first call compiles, and searches nothing: with a table it costs what it costs without."""
    chosen = list(cases(request.config.getoption("--size") or ("full" if on_gpu() else "small")))
    if not chosen:
        pytest.skip("on a CPU there is nothing to tune")
    if session.keep and session.file["first_call"]:
        return
    left = session.left()
    if left is not None and left <= 0:
        pytest.skip("the time limit is spent")
    table = session.table if session.table.exists() and tables.read(session.table).entries else None
    without, later = first_call(chosen[0], None)
    session.file["first_call"] = {
        "case": str(chosen[0]),
        "without_table": without,
        "with_table": first_call(chosen[0], table)[0] if table else None,
        "second_call": later,
    }
    session.save()
