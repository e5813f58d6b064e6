"""The gpu lane runs where there is pytest, but neither hypothesis nor pytest's other plugins."""

from __future__ import annotations

import re
from pathlib import Path

from tests import fresh

ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys

MISSING = {"hypothesis", "_hypothesis_pytestplugin", "xdist", "execnet", "matplotlib", "PIL", "accelerate", "yaml"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_the_gpu_lane_needs_pytest_alone() -> None:
    options = ("--lane", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider")
    done = fresh.python(WITHOUT, *options, cwd=ROOT, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    collected = re.findall(r"^(tests/\S+?)::", done.stdout, re.MULTILINE)
    assert {Path(name).parts[1] for name in collected} == {"gpu"}
    assert {Path(name).name for name in collected} == {path.name for path in ROOT.glob("tests/gpu/test_*.py")}


PRETENDING = """
import sys
import pytest
import torch

torch.cuda.is_available = lambda: True
torch.cuda.empty_cache = lambda: print("freed")
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_the_gpu_lane_frees_memory_behind_every_test() -> None:
    # None of its tests passes without a GPU: what ends a test is to free all the same.
    options = ["--lane", "gpu", "-sq", "-p", "no:cacheprovider", "--tb=no", "-k", "tuned_network or (se and 256)"]
    done = fresh.python(PRETENDING, *options, "tests/gpu/test_tuning_on_gpu.py", cwd=ROOT, status=1)
    assert re.search(r"^5 failed", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert done.stdout.count("freed") == 5
