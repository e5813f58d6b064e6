"""Results side by side: what fails, what is only said, and what cannot be compared."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.files import RESULTS

ROOT = Path(__file__).parents[2]
VERSIONS = {"triton_attn": "0.1.0", "Python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0"}


def seconds(median: float, spread: float = 0.02) -> dict[str, float]:
    return {"median": median, "q1": median * (1 - spread), "q3": median * (1 + spread)}


def suite(**cases: dict[str, Any]) -> dict[str, Any]:
    timed = {name: {"seconds": providers, "not_timed": {}} for name, providers in cases.items()}
    return {"suite": "blocks", "device": "A GPU", "versions": VERSIONS, "cases": timed}


def direction(total: float, launches: int = 2) -> dict[str, Any]:
    return {"total": total, "roles": {"map": total}, "sectors": 1.0, "launches": launches, "map_launches": 2}


def traffic(*cases: str) -> dict[str, Any]:
    rows = [
        {
            "case": case,
            "block": case,
            "layout": layout,
            "shortcut": False,
            "shape": [2, 64, 28, 28],
            "ours": {"forward": direction(3.01), "backward": direction(4.05, 3), "kept": {"total": 1.01}},
            "eager": {"forward": direction(3.0), "backward": direction(10.1, 12), "kept": {"total": 2.0}},
        }
        for case in cases
        for layout in ("contiguous", "channels_last")
    ]
    return {"versions": VERSIONS, "dtype": "float16", "rows": rows}


def code(**changes: Any) -> dict[str, Any]:
    row = {
        "kernel": "squeeze_fwd_kernel",
        "target": "sm_90",
        "dtype": "bfloat16",
        "layout": "channels_last, contiguous",
        "warps": 4,
        "registers": 40,
        "spilled": 0,
        "shared": 1024,
        "occupancy": 0.75,
        "loads": 16,
        "stores": 4,
        "tensor_cores": 8,
        "blocks": "eca, se",
        "programs": 2,
    }
    return {"versions": VERSIONS, "rows": [row, {**row, "registers": 32, **changes}]}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Compare two contents, and give the exit status and what was printed."""

    def run(old: Any, new: Any, *options: str) -> tuple[int, str]:
        paths = []
        for name, content in (("old.json", old), ("new.json", new)):
            paths.append(tmp_path / name)
            paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
        status = compare.main([*map(str, paths), *options])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_seconds_fail_above_the_threshold_and_the_spread(run: Any) -> None:
    old = suite(a={"ours": seconds(1.0)}, b={"ours": seconds(1.0)}, c={"ours": seconds(1.0)}, d={"ours": seconds(1.0)})
    new = suite(
        a={"ours": seconds(1.2)},  # at least 1.176 / 1.02
        b={"ours": seconds(1.08)},  # 1.058 / 1.02 is within the threshold
        c={"ours": seconds(0.8)},
        d={"ours": seconds(1.04)},
    )
    status, said = run(old, new)
    assert status == 1
    lines = [line.split() for line in said.splitlines() if " ours " in line]
    assert [(line[0], line[4], line[-1]) for line in lines] == [
        ("a", "1.200", "worse"),
        ("b", "1.080", "maybe"),
        ("d", "1.040", "1.082"),
        ("c", "0.800", "better"),
    ]
    assert lines[0][5:8] == ["1.153", "to", "1.249"]
    assert said.endswith("Something got worse.\n")
    assert run(old, new, "--threshold", "1.16")[0] == 0
    assert run(old, old)[0] == 0


def test_a_wide_spread_is_no_proof(run: Any) -> None:
    old, new = suite(a={"ours": seconds(1.0, 0.3)}), suite(a={"ours": seconds(1.5, 0.3)})
    status, said = run(old, new)
    assert status == 0
    assert said.splitlines()[2].endswith("maybe")


def test_only_the_providers_that_are_asked_for_fail(run: Any) -> None:
    old = suite(a={"ours": seconds(1.0), "eager": seconds(1.0)})
    new = suite(a={"ours": seconds(1.0), "eager": seconds(2.0)})
    status, said = run(old, new)
    assert (status, "eager" in said) == (0, False)
    status, said = run(old, new, "--all")
    assert (status, "eager" in said) == (0, True)
    assert run(old, new, "--provider", "eager")[0] == 1


def test_what_only_one_file_has_is_listed(run: Any) -> None:
    old = suite(a={"ours": seconds(1.0), "flex": seconds(1.0)}, gone={"ours": seconds(1.0)})
    new = suite(a={"ours": seconds(1.0), "sdpa": seconds(1.0)}, more={"ours": seconds(1.0)})
    status, said = run(old, new)
    assert status == 0
    for line in ("only in OLD: gone", "only in NEW: more", "only in OLD: a, flex", "only in NEW: a, sdpa"):
        assert line in said


def test_ours_that_is_refused_now_fails(run: Any) -> None:
    old, new = suite(a={"ours": seconds(1.0)}), suite(a={})
    new["cases"]["a"]["not_timed"]["ours"] = "OutOfMemoryError: no"
    status, said = run(old, new)
    assert status == 1
    assert "worse: a: ours is not timed any more: OutOfMemoryError: no" in said


def test_single_numbers_have_no_spread_and_prove_nothing(run: Any) -> None:
    old, new = suite(a={"table": 1.0, "best": 1.0}), suite(a={"table": 2.0, "best": 1.0})
    status, said = run(old, new)
    assert status == 0
    assert "maybe" in said


def test_devices_and_versions_are_said(run: Any) -> None:
    old, new = suite(a={"ours": seconds(1.0)}), suite(a={"ours": seconds(2.0)})
    new["versions"] = {**VERSIONS, "torch": "2.12.0"}
    new["device"] = "Another"
    status, said = run(old, new)
    assert status == 2
    assert "new.json: the devices differ: A GPU in OLD, Another in NEW; --across compares them all the same" in said
    status, said = run(old, new, "--across")
    assert status == 1
    lines = ["the devices differ: A GPU in OLD, Another in NEW", "versions differ: torch 2.11.0 in OLD, 2.12.0 in NEW"]
    assert said.splitlines()[1:3] == lines


@pytest.mark.parametrize(("what", "change"), [("total", 1e-4), ("sectors", 0.01), ("launches", 1), ("map_launches", 1)])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_traffic_is_compared_exactly(run: Any, what: str, change: float, way: str) -> None:
    old = traffic("se", "eca")
    new = copy.deepcopy(old)
    new["rows"][1]["ours"][way][what] += change
    status, said = run(old, new)
    assert status == 1
    assert f"se, channels_last, 2×64×28×28  {way}, " in said
    status, said = run(new, old)
    assert status == 0
    assert "better" in said


def test_more_that_is_kept_is_worse(run: Any) -> None:
    old = traffic("se")
    new = copy.deepcopy(old)
    new["rows"][1]["ours"]["kept"]["total"] += 1e-4
    new["rows"][1]["eager"]["kept"]["total"] += 1
    status, said = run(old, new)
    assert status == 1
    assert said.count("worse") == 2  # and the end
    assert "se, channels_last, 2×64×28×28  kept, T" in said
    assert run(new, old)[0] == 0


def test_traffic_of_others_is_their_own(run: Any) -> None:
    old = traffic("se")
    new = copy.deepcopy(old)
    new["versions"] = {**VERSIONS, "torch": "2.12.0"}
    new["rows"][0]["eager"]["forward"]["total"] += 1
    status, said = run(old, new)
    assert status == 0
    assert "versions differ: torch" in said
    new["rows"][0]["ours"]["forward"]["total"] += 1
    assert run(old, new)[0] == 1


def test_a_block_that_is_not_counted_any_more_fails(run: Any) -> None:
    status, said = run(traffic("se", "eca"), traffic("se"))
    assert status == 1
    assert "worse: only in OLD: eca, contiguous, 2×64×28×28" in said
    unserved = traffic("se")
    unserved["rows"][0]["ours"] = None
    assert run(traffic("se"), unserved)[0] == 1
    assert run(traffic("se"), traffic("se", "eca"))[0] == 0


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"registers": 48}, 0),
        ({"registers": 49}, 1),
        ({"occupancy": 0.5}, 1),
        ({"spilled": 1}, 1),
        ({"shared": 2048}, 0),
        ({"shared": 2049}, 1),
        ({"loads": 8}, 1),
        ({"stores": 2}, 1),
        ({"tensor_cores": 4}, 0),
        ({"tensor_cores": 0}, 1),
        ({"loads": 32}, 0),
    ],
    ids=str,
)
def test_machine_code(run: Any, changes: dict[str, Any], status: int) -> None:
    assert run(code(), code(**changes))[0] == status


def test_machine_code_is_that_of_one_compiler(run: Any) -> None:
    new = code(spilled=8)
    new["versions"] = {**VERSIONS, "triton": "3.8.0"}
    status, said = run(code(), new)
    assert status == 2  # nothing else is there
    assert "versions differ: triton 3.6.0 in OLD, 3.8.0 in NEW" in said
    assert "machine code of two versions of Triton is not compared" in said


def test_machine_code_that_is_gone_fails_and_alike_rows_stand_for_several(run: Any) -> None:
    new = code()
    for row in new["rows"]:
        row["blocks"] = "se"
    status, said = run(code(), new)
    assert status == 1
    assert said.count("worse: only in OLD: squeeze_fwd_kernel, sm_90, eca, bfloat16, ") == 2
    status, said = run(code(), {**code(), "rows": code()["rows"][:1]})
    assert status == 0  # the worst of the group is there
    assert "as before" in said


def test_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "gpu").mkdir(parents=True)
        (tmp_path / name / "traffic.json").write_text(json.dumps(traffic("se")))
        (tmp_path / name / "gpu" / "tuned.json").write_text("{}")  # a table lies beside the results
    (tmp_path / "old" / "gpu" / "blocks.json").write_text(json.dumps(suite(a={"ours": seconds(1.0)})))
    arguments = [str(tmp_path / "old"), str(tmp_path / "new")]
    assert compare.main(arguments) == 0
    said = capsys.readouterr().out
    assert "== gpu/blocks.json\nonly in OLD\n" in said
    assert "tuned" not in said
    (tmp_path / "new" / "gpu" / "blocks.json").write_text(json.dumps(suite(a={"ours": seconds(2.0)})))
    assert compare.main(arguments) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"suite": "blocks", "cas', "new.json: expected a result file in JSON ("),
        ("[1, 2]", "new.json: expected a result file, a JSON object, got a list"),
        (
            {"machine_info": {}, "benchmarks": []},
            "new.json: expected a suite's results (suite, device,",
        ),
        ({}, "got an object of nothing"),
        (traffic("se"), "new.json: expected seconds, as "),
        ({**suite(), "cases": {"a": {}}}, "new.json: expected seconds, but KeyError('seconds') is not as it should be"),
        ({**suite(), "cases": {"a": {"seconds": {"ours": {"median": 1}}}}}, "KeyError('q1')"),
        ({**suite(), "suite": "models"}, "new.json: expected the suite blocks, as in OLD, got models"),
    ],
    ids=range(8),
)
def test_files_that_cannot_be_compared(run: Any, content: Any, message: str) -> None:
    status, said = run(suite(a={"ours": seconds(1.0)}), content)
    assert status == 2
    assert message in said


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        (suite(a={"ours": seconds(1.0)}), suite(b={"ours": seconds(1.0)}), (), "nothing could be compared"),
        (suite(a={"eager": seconds(1.0)}), suite(a={"eager": seconds(9.0)}), (), "nothing could be compared"),
        (suite(), suite(), (), "nothing could be compared"),
        (
            suite(a={"ours": seconds(1.0), "eager": seconds(1.0)}),
            suite(a={"ours": seconds(9.0), "flex": seconds(1.0)}),
            ("--provider", "ours,ous"),
            "--provider: expected some of eager, flex, ours, got 'ous'",
        ),
        (
            suite(a={"ours": seconds(1.0)}),
            suite(a={"ours": seconds(9.0)}),
            ("--provider", "ous", "--all"),
            "--provider: expected some of ours, got 'ous'",
        ),
        (
            suite(a={"ours": seconds(1.0)}),
            suite(a={"ours": seconds(9.0)}),
            ("--provider", ""),
            "--provider: expected some of ours, got ''",
        ),
    ],
    ids=["cases", "providers", "empty", "misspelt", "misspelt-all", "no-name"],
)
def test_where_nothing_is_compared_nothing_is_said_to_be_well(
    run: Any, old: Any, new: Any, options: tuple[str, ...], message: str
) -> None:
    status, said = run(old, new, *options)
    assert status == 2
    assert f"error: {message}" in said
    assert "got worse" not in said


def test_a_provider_need_not_be_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        for provider in ("ours", "table"):
            (tmp_path / name / f"{provider}.json").write_text(json.dumps(suite(a={provider: seconds(1.0)})))
    arguments = [str(tmp_path / "old"), str(tmp_path / "new"), "--provider"]
    assert compare.main([*arguments, "table"]) == 0
    capsys.readouterr()
    assert compare.main([*arguments, "tables"]) == 2
    assert "expected some of ours, table, got 'tables'" in capsys.readouterr().err
    refused = suite(a={})
    refused["cases"]["a"]["not_timed"]["flex"] = "no"
    (tmp_path / "old" / "table.json").write_text(json.dumps(refused))
    assert compare.main([*arguments, "ours,flex"]) == 0  # its name is known, and it runs nowhere


@pytest.mark.parametrize("provider", ["ours", "eager"])
@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), 10**400], ids=range(6))
@pytest.mark.parametrize("which", ["old", "new"])
def test_times_that_are_none(run: Any, which: str, value: float, provider: str) -> None:
    contents = {name: suite(a={"ours": seconds(1.0), "eager": 1.0}) for name in ("old", "new")}
    for spoilt in ({**seconds(1.0), "q1": value}, {**seconds(1.0), "median": value}, value):
        contents[which]["cases"]["a"]["seconds"][provider] = spoilt
        status, said = run(contents["old"], contents["new"])
        assert status == 2
        assert f"{which}.json: expected " in said
        assert "got worse" not in said


def test_a_number_beside_one_with_a_spread_proves_nothing(run: Any) -> None:
    status, said = run(suite(a={"ours": seconds(1.0)}), suite(a={"ours": 2.0}))
    assert status == 0
    assert "maybe" in said


def test_paths_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.json"
    file.write_text(json.dumps(suite()))
    for arguments, message in (
        ([str(tmp_path / "no.json"), str(file)], "OLD: expected a result file or a folder of them"),
        ([str(tmp_path), str(file)], "OLD, NEW: expected two files or two folders"),
        ([str(tmp_path), str(ROOT / "docs")], "OLD, NEW: expected result files of the same names"),
    ):
        assert compare.main(arguments) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([str(file), str(file), "--threshold", "0.9"])
    assert "--threshold: expected at least 1, got 0.9" in capsys.readouterr().err


@pytest.mark.parametrize("way", [["-m", "benchmarks.compare"], ["benchmarks/compare.py"]], ids=str)
def test_it_runs_by_name_and_by_path(way: list[str]) -> None:
    """On what is committed, against itself."""
    command = [sys.executable, *way, str(RESULTS), str(RESULTS), "--threshold", "1.2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "== traffic.json" in done.stdout
    assert "== compile/report.json" in done.stdout
    assert done.stdout.endswith("Nothing got worse.\n")
