"""Result files as a GPU would leave them, with times made up: for testing what is made of them, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import bench_blocks, bench_calls, bench_models, bench_nonlocal

HEAD = {
    "device": "NVIDIA Test 1",
    "versions": {"triton_attn": "0", "Python": "3", "torch": "2.11", "triton": "3.6", "timm": "1"},
}
SHAPES = bench_blocks.SHAPES["full"]


def spread(median: float) -> dict[str, float]:
    return {"median": median, "q1": 0.95 * median, "q3": 1.05 * median}


def timed(seconds: dict[str, float], **fields: Any) -> dict[str, Any]:
    """A case, by its providers' seconds."""
    own = "ours" if "ours" in seconds else "ours-compile"
    return {
        **fields,
        "date": "2026-11-24T00:00:00+00:00",
        "rounds": 20,
        "seconds": {who: spread(each) for who, each in seconds.items()},
        "ours_over": {who: spread(seconds[own] / each) for who, each in seconds.items() if who != own},
        "peak_bytes": dict.fromkeys(seconds, 10_000_000),
        "not_timed": {},
    }


def blocks(ours: float = 1.0, share: float = 0.9, dtype: str = "bfloat16") -> dict[str, Any]:
    """Every block at every site; others take 1.5 ms and more."""
    cases = {}
    for block in ("cbam", "coordinate", "dual", "eca", "gate", "nonlocal", "pixel", "se"):
        for site, shape in SHAPES.items():
            for direction in ("forward", "backward", "training"):
                seconds = {"ours": ours * 1e-3, "eager": 3e-3, "compile": 1.5e-3, "copy": 0.4e-3}
                fields = {"block": block, "site": site, "shape": shape, "dtype": dtype, "layout": "channels_last"}
                launches = [{"kernel": "apply_gate_fwd_kernel", "bytes_per_second": 4e12, "share_of_copy": share}]
                cases[f"{block}-{site}-{direction}"] = timed(seconds, **fields, direction=direction, launches=launches)
    return {"suite": "blocks", **HEAD, "cases": cases}


def calls(wall: float = 0.9) -> dict[str, Any]:
    """Every block at small batches: the GPU is done in a tenth of the time."""
    cases = {}
    for case in bench_calls.cases("goal"):
        cases[str(case)] = timed({"ours": 0.9e-5, "eager": 1.2e-5}, **asdict(case), launches=[])
        found = timed({"ours": wall * 1e-4, "eager": 1e-4})
        cases[str(case)]["wall"] = {key: found[key] for key in ("seconds", "ours_over")}
    return {"suite": "calls", **HEAD, "cases": cases}


def nonlocals(ours: float = 1.0) -> dict[str, Any]:
    """All that the claims are about; the GPU's memory has no room for the largest matrices."""
    cases = {}
    for case in bench_nonlocal.cases("goal"):
        scale = case.positions**2 * 1e-9
        times = {"ours": ours, "eager": 2.0, "compile": 1.9, "flex": 1.4}
        seconds = {who: times.get(who, 1.2) * scale for who in ("ours", *bench_nonlocal.rivals(case))}
        more = {"positions": case.positions, "widths": bench_nonlocal.WIDTHS[case.site]}
        cases[str(case)] = timed(seconds, **asdict(case), **more, tflops=dict.fromkeys(seconds, 1.0))
        if case.site == "layer4":
            del cases[str(case)]["seconds"]["sdpa-flash"], cases[str(case)]["ours_over"]["sdpa-flash"]
            cases[str(case)]["not_timed"] = {"sdpa-flash": "RuntimeError: No available kernel | here"}
    return {"suite": "nonlocal", **HEAD, "cases": cases}


def models(ours: float = 105.0) -> dict[str, Any]:
    """SE in every block: eager pays 20 %, the compiled 25 %, timm 18 %."""
    eager = {"plain": 100.0, "timm-plain": 100.0, "ours": ours, "eager": 120.0, "timm": 118.0}
    compiled = {"plain-compile": 80.0, "ours-compile": 90.0, "compile": 100.0}
    fields = {"network": "resnet50", "attention": "se", "where": "block", "batch": 64, "image": 224}
    more = {"dtype": "bfloat16", "layout": "channels_last"}
    cases = {
        f"{mode}-{kind}": timed(
            {who: each * 1e-3 for who, each in seconds.items()},
            **fields,
            **more,
            mode=mode,
            compiled=bool(kind),
            tax=bench_models.taxes({who: [each] for who, each in seconds.items()}),
        )
        for mode in ("training", "inference")
        for kind, seconds in (("", eager), ("compiled", compiled))
    }
    return {"suite": "models", **HEAD, "cases": cases}


def autotune(rule: float = 1.05) -> dict[str, Any]:
    """One launch."""
    config = {"SPAN": 128, "BLOCK_P": 32}
    case = {
        "kernel": "apply_gate_fwd_kernel",
        "date": "2026-11-24T00:00:00+00:00",
        "configs": 9,
        "other_bits": 0,
        "seconds": {"rule": rule * 1e-4, "table": 1e-4, "best": 1e-4},
        "config": {"rule": config, "table": {**config, "SPAN": 256}, "best": {**config, "SPAN": 256}},
    }
    first = {"case": "se", "without_table": 3.0, "with_table": 3.1, "second_call": 0.001}
    return {"suite": "autotune", **HEAD, "first_call": first, "searched": [], "cases": {"apply_gate_fwd": case}}


def put(folder: Path, **files: dict[str, Any]) -> Path:
    """Write files into a results folder, those of a GPU below its name."""
    for name, content in files.items():
        path = folder / "nvidia-test-1" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder
