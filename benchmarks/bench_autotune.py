"""What tuning costs and what it gains: the rule's config, the table's, and the best of all that were tried.

The launches of blocks at ResNet-50's shapes are searched, each over its whole space. ``results/<device>/autotune.json``
keeps, for each, what the rule's config takes, the one that the table gets (the fastest that changes no bit), and the
fastest at all; and what the first call of a block costs in a process of its own, with nothing compiled before:
without a table, and with one. Nothing is searched there. The table itself is ``results/<device>/tuned.json``.
Both are written after every search.
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
from benchmarks.measurement import LATE
from benchmarks.suite import REPLAY, device, device_name, earlier, on_gpu, slug
from triton_attn.tune import Call, tune_calls
from triton_attn.tuning.keys import Key
from triton_attn.tuning.search import Found

PROVIDERS = ("rule", "table", "best")
CHILD_SECONDS = 120.0  # that a process has for a first call, most of it for imports and the compiler
GRACE = 30.0  # seconds behind the time limit that it may end; benchmarks.gpu waits for 45
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

    def __init__(self, results: Path, end: float | None, keep: bool) -> None:
        self.path, self.table = results / slug() / "autotune.json", results / slug() / "tuned.json"
        self.head = {"suite": "autotune", "device": device_name(), "versions": versions("CUDA", "ROCm")}
        self.keep, self.end = keep, end
        found = earlier(self.path, self.head)
        nothing: dict[str, Any] = {"first_call": {}, "searched": [], "cases": {}}
        self.file = {key: found.get(key, empty) for key, empty in nothing.items()}
        if not keep:  # everything is searched again; what this session does not come to stays as it is
            self.file["searched"] = []
        self.known = set(self.file["cases"]) if keep else set()

    def left(self) -> float | None:
        """Seconds."""
        return None if self.end is None else self.end - time.time()

    def search(self, case: Case, share: float = 1.0) -> None:
        """Search the launches of a case that are not known yet, while a share of the time that is left lasts."""
        if str(case) in self.file["searched"]:
            return
        left = self.left()
        if left is not None and left <= 0:
            pytest.skip(LATE)
        block: Any = triton_attn.create_attention(case.block, case.shape[1], dtype=getattr(torch, case.dtype))
        x = torch.empty(case.shape, dtype=getattr(torch, case.dtype), device="meta")
        if case.layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        like = torch.empty((1, 1, 1, 1), dtype=x.dtype, device=device())
        tuned = tune_calls(
            [Call(block, {"x": x, "shortcut": x})],
            like,
            budget=None if left is None else share * left,
            path=self.table,
            again=True,
            skip=lambda key: str(key) in self.known,  # blocks share kernels, and so keys
            on_found=self.note,
        )
        if not tuned.left_out:
            self.file["searched"] = sorted({*self.file["searched"], str(case)})
            self.save()

    def note(self, key: Key, found: Found) -> None:
        """Write what a search found."""
        self.known.add(str(key))
        self.file["cases"][str(key)] = record(key, found)
        self.save()

    def measure_first_call(self, case: Case) -> dict[str, Any]:
        """Time the first call of a case's block without a table and with ours, and write what came of it."""
        measured = ("without_table", "with_table", "second_call", "launches_by_table")
        found: dict[str, Any] = {"case": str(case), **dict.fromkeys(measured)}
        self.file["first_call"] = found
        try:
            found["without_table"], found["second_call"], _ = first_call(case, None, self.left())
            self.save()
            if self.table.exists():
                seconds, _, found["launches_by_table"] = first_call(case, self.table, self.left())
                # Where no launch takes an entry it is a first call without a table.
                found["with_table"] = seconds if found["launches_by_table"] else None
        except subprocess.TimeoutExpired as error:
            found["failed"] = f"it did not end in {error.timeout:.0f} s"
        except subprocess.CalledProcessError as error:
            found["failed"] = f"exit status {error.returncode}: {error.stderr.strip()[-500:]}"
        self.save()
        return found

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
    found = Session(option("--results"), option("--until"), option("--keep"))
    yield found
    if found.path.exists():
        print(f"\nwritten: {found.path}, {found.table}")


FIRST_CALL = """
import json, sys, time
import torch
import triton_attn
from triton_attn.ops import launch
from triton_attn.tuning import selection, tables
from triton_attn.tuning.keys import Key
from pathlib import Path

name, shape, dtype, device, table = json.loads(sys.argv[1])
entries = tables.read(Path(table)).entries if table else {}
block = triton_attn.create_attention(name, shape[1], device=device, dtype=getattr(torch, dtype))
x, shortcut = (
    torch.randn(shape, device=device, dtype=getattr(torch, dtype))
    .contiguous(memory_format=torch.channels_last)
    .requires_grad_()
    for _ in range(2)
)
def step():
    start = time.perf_counter()
    block(x, shortcut=shortcut).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
by_table = 0
def look(given):
    global by_table
    entry = entries.get(Key.of(given.kernel.fn.__name__, given.shape))
    if entry is not None:
        chosen = selection.choose(given.kernel, given.shape, given.rule, given.device)
        by_table += chosen == {**given.rule, **entry.config}
with selection.use_entries(entries):
    first, second = step(), step()
    with launch.watch(look):
        step()
print(json.dumps([first, second, by_table]))
"""


def first_call(case: Case, table: Path | None, left: float | None) -> tuple[float, float, int]:
    """A training step of a block in a new process, with nothing compiled before, when ``left`` seconds are left.

    The seconds of the first and of the second, and how many launches of one go by an entry of the table.
    """
    given = [case.block, case.shape, case.dtype, device().type, str(table) if table else None]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-c", FIRST_CALL, json.dumps(given)],
            cwd=ROOT,
            env={**os.environ, "TRITON_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
            timeout=CHILD_SECONDS if left is None else min(CHILD_SECONDS, left + GRACE),
        )
    first, second, by_table = json.loads(done.stdout.splitlines()[-1])
    return first, second, by_table


def test_first_call(session: Session, request: pytest.FixtureRequest) -> None:
    """A first call compiles, and searches nothing: with a table it costs what it costs without.

    It comes before the searches, which take all the time there is, but for some of the first, which makes the table.
    """
    case = next(cases(request.config.getoption("--size") or ("full" if on_gpu() else "small")), None)
    if case is None:
        pytest.skip("on a CPU there is nothing to tune")
    if session.keep and session.file["first_call"].get("with_table"):
        return
    session.search(case, share=0.5)
    found = session.measure_first_call(case)
    if "failed" in found:
        pytest.fail(f"a first call: {found['failed']}")
    assert found["launches_by_table"] != 0, "no launch took an entry of the table"


@pytest.mark.benchmark(timer=REPLAY, warmup=False)
def test_launches(benchmark: Any, session: Session, case: Case) -> None:
    """Search the launches of a case; what pytest-benchmark is told is the sum of the table's."""
    session.search(case)
    seconds = [each["seconds"] for each in session.file["cases"].values()]
    benchmark.group = "all launches searched so far, one after the other"
    benchmark.extra_info["seconds"] = {who: sum(each[who] for each in seconds) for who in PROVIDERS}
    REPLAY.load([sum(each["table"] for each in seconds)])
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)
