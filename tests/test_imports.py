"""What an import costs and touches, and who imports whom."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fresh

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = ("triton", "torchvision", "timm", "safetensors")

# The packages can be found, as PyTorch itself looks for some of them, but whoever imports one gets an ImportError.
BLOCK = """
import importlib.abc, importlib.machinery, sys

class Blocked(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            return importlib.machinery.ModuleSpec(name, self)

    def exec_module(self, module):
        raise ImportError(f"{module.__name__} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def python(source: str, *, blocked: tuple[str, ...] = (), **environment: str) -> dict:
    """Run ``source`` in a fresh process and return the JSON that it prints last."""
    program = (BLOCK % (blocked,) if blocked else "") + textwrap.dedent(source)
    # Not in the root, whose folders would be importable.
    done = fresh.python(program, cwd=ROOT / "tests", **environment)
    return json.loads(done.stdout.splitlines()[-1])


PROBE = """
import json, os, sys, threading
import torch

modules, environment = set(sys.modules), dict(os.environ)
random = torch.get_rng_state()
def settings():
    chosen = torch.get_float32_matmul_precision(), str(torch.get_default_dtype())
    return *chosen, torch.is_grad_enabled(), torch.get_num_threads()

before = settings()
asked, written, connected = [], [], []
for name in ("is_available", "device_count", "get_device_capability", "get_device_properties", "init", "_lazy_init"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))

def listen(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        written.append(str(arguments[0]))
    elif event.startswith(("socket.connect", "socket.getaddrinfo")):
        connected.append(event)

sys.dont_write_bytecode = True
sys.addaudithook(listen)
import triton_attn
print(json.dumps({
    "loaded": sorted(set(sys.modules) - modules),
    "environment": dict(os.environ) == environment,
    "random": torch.equal(torch.get_rng_state(), random),
    "settings": settings() == before,
    "cuda": torch.cuda.is_initialized(),
    "asked": asked,
    "written": written,
    "connected": connected,
    "threads": threading.active_count(),
}))
"""


@pytest.fixture(scope="module")
def probe() -> dict:
    """What ``import triton_attn`` does in a fresh process that has imported torch."""
    return python(PROBE)


def test_a_plain_import_loads_no_optional_package(probe):
    found = {name.partition(".")[0] for name in probe["loaded"]}
    assert "triton_attn" in found
    assert not found & {*OPTIONAL, "accelerate", "matplotlib", "sklearn", "PIL", "yaml", "tqdm", "torchmetrics"}
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"says less than it could: {', '.join(missing)} not installed")


def test_the_kernels_and_the_training_application_stay_unloaded(probe):
    assert "triton_attn.blocks.se" in probe["loaded"]
    late = ("triton_attn.kernels", "triton_attn.train", "triton_attn.cli")
    assert not [name for name in probe["loaded"] if name.startswith(late)]


def test_an_import_touches_nothing(probe):
    assert probe["environment"]
    assert probe["random"]
    assert probe["settings"]
    assert not probe["cuda"]
    assert probe["asked"] == []
    assert probe["written"] == []
    assert probe["connected"] == []
    assert probe["threads"] == 1


def test_an_import_is_quick(probe):
    """It loads the standard library's and our own modules, and no part of PyTorch that ``import torch`` does not."""
    known = {*sys.stdlib_module_names, "triton_attn"}
    assert [name for name in probe["loaded"] if name.partition(".")[0] not in known] == []


def test_a_network_trains_with_every_optional_package_blocked():
    found = python(
        """
        import json, sys
        import torch
        import triton_attn
        results = {}
        for name in triton_attn.list_attention():
            model = triton_attn.resnet18({"layer3": name, "block": name}, num_classes=3)
            loss = model(torch.randn(2, 3, 32, 32)).square().mean()
            loss.backward()
            results[name] = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        model = triton_attn.ResNetWithAttention(triton_attn.SEBlock, pretrained=False)
        reasons = [each.reason for each in triton_attn.explain(triton_attn.SEBlock(16), torch.zeros(1, 16, 2, 2))]
        print(json.dumps({"results": results, "reasons": reasons, "loaded": list(sys.modules)}))
        """,
        blocked=OPTIONAL,
    )
    assert len(found["results"]) == 8
    assert all(found["results"].values()), found["results"]
    assert not {name.partition(".")[0] for name in found["loaded"]} & set(OPTIONAL)


def test_without_triton_the_reason_says_so():
    found = python(
        """
        import importlib.util, json
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
        import torch, triton_attn
        block, x = triton_attn.SEBlock(16), torch.zeros(1, 16, 2, 2)
        block(x)
        try:
            with triton_attn.use_backend("triton"):
                block(x)
        except triton_attn.BackendError as error:
            message = str(error)
        print(json.dumps([triton_attn.explain(block, x)[0].reason, message]))
        """
    )
    assert found[0] == "Triton is not installed"
    assert "Triton is not installed" in found[1]


def test_missing_torchvision_and_safetensors_are_named_when_they_are_needed(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    found = python(
        # None in sys.modules is what an import of a package that is not there comes to.
        f"""
        import json, sys
        sys.modules["torchvision"] = sys.modules["safetensors"] = None
        import triton_attn
        messages = []
        for weights in ("IMAGENET1K_V1", {str(tmp_path / "weights.safetensors")!r}):
            try:
                triton_attn.resnet18(weights=weights)
            except ModuleNotFoundError as error:
                messages.append(str(error))
        print(json.dumps(messages))
        """
    )
    assert "pip install torchvision" in found[0]
    assert "pip install safetensors" in found[1]


# Who imports whom: read off the sources.


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "reference":
        parts = ("triton_attn", *parts)
    return ".".join(parts)


def imports(path: Path, *, nested: bool = True) -> Iterator[str]:
    """The absolute names of what a file imports; without ``nested``, at module level alone."""
    module = module_of(path)
    package = module.removesuffix(".__init__") if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")
            base = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        if nested or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offenders(folder: str, *forbidden: str, nested: bool = True) -> list[str]:
    found = sources(folder)
    assert found, folder
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in found
        for name in imports(path, nested=nested)
        if within(name, *forbidden)
    ]


def test_the_reader_of_imports_reads_them():
    assert "triton_attn.reference.common.check_map" in set(imports(ROOT / "reference" / "se.py"))
    assert "safetensors.torch" in set(imports(ROOT / "reference" / "weights.py"))
    assert "safetensors.torch" not in set(imports(ROOT / "reference" / "weights.py", nested=False))
    assert "triton_attn.blocks.se.SEBlock" in set(imports(ROOT / "triton_attn" / "blocks" / "__init__.py"))
    assert "triton_attn.reference" in set(imports(ROOT / "triton_attn" / "blocks" / "se.py"))


def test_reference_imports_torch_alone():
    standard = set(sys.stdlib_module_names)
    for path in sources("reference"):
        for name in imports(path, nested=False):
            top = name.partition(".")[0]
            assert top in standard or top == "torch" or within(name, "triton_attn.reference"), f"{path.name}: {name}"
    assert not offenders("reference", "triton")
    upward = [f"triton_attn.{name}" for name in ("blocks", "ops", "kernels", "backend", "registry", "resnet", "tuning")]
    assert not offenders("reference", *upward)


def test_kernels_know_no_module_and_no_autograd():
    assert not offenders("triton_attn/kernels", "torch.nn", "torch.autograd", "torch.library")
    for path in sources("triton_attn/kernels"):
        for name in imports(path):
            if within(name, "triton_attn"):
                assert within(name, "triton_attn.kernels"), f"{path.name}: {name}"


def test_ops_know_no_module_and_take_kernels_late():
    above = [
        f"triton_attn.{name}" for name in ("blocks", "registry", "resnet", "functional", "train", "cli", "explain")
    ]
    assert not offenders("triton_attn/ops", "torch.nn", *above)
    assert not offenders("triton_attn/ops", "triton", "triton_attn.kernels", nested=False)


def test_blocks_know_no_triton():
    above = [f"triton_attn.{name}" for name in ("registry", "resnet", "train", "cli")]
    assert not offenders("triton_attn/blocks", "triton", "triton_attn.kernels", *above)


def test_tuning_and_backend_stand_below_the_blocks():
    above = [f"triton_attn.{name}" for name in ("blocks", "registry", "resnet", "train", "cli")]
    assert not offenders("triton_attn/tuning", *above)
    assert not [name for name in imports(ROOT / "triton_attn" / "backend.py") if within(name, *above)]


def test_nothing_but_kernels_imports_triton_at_module_level():
    found = offenders("triton_attn", "triton", nested=False)
    assert [each for each in found if not each.startswith("triton_attn/kernels/")] == []


def test_extra_dependencies_live_in_the_training_application_and_the_adapters_alone():
    extra = ("accelerate", "matplotlib", "PIL", "yaml", "sklearn", "tensorboard", "torchmetrics", "tqdm", "timm")
    found = offenders("triton_attn", *extra) + offenders("reference", *extra)
    at_home = ("triton_attn/train/", "triton_attn/fusion/adapters/")
    assert [each for each in found if not each.startswith(at_home)] == []


def test_fusion_stands_above_the_ops_and_below_the_registry():
    above = [f"triton_attn.{name}" for name in ("registry", "resnet", "train", "cli", "explain", "tune", "blocks")]
    assert not offenders("triton_attn/fusion", "triton", "triton_attn.kernels", *above)


def test_benchmarks_are_counted_then_timed_then_written():
    assert not offenders("benchmarks/counted", "benchmarks.timed", "benchmarks.written")
    assert not offenders("benchmarks/timed", "benchmarks.written")


def test_an_adapter_knows_one_library():
    for path in sources("triton_attn/fusion/adapters"):
        libraries = {name.partition(".")[0] for name in imports(path)} - {*sys.stdlib_module_names, "torch"}
        assert len(libraries - {"triton_attn"}) <= 1, path
        assert all(f"{path.stem}_".startswith(f"{library}_") for library in libraries - {"triton_attn"}), path


def test_fuse_loads_no_library_that_is_not_there_already():
    found = python(
        """
        import json, sys
        import torch, triton_attn
        triton_attn.fuse(torch.nn.Conv2d(3, 8, 1))
        before = sorted(name for name in sys.modules if name.startswith("triton_attn.fusion.adapters."))
        import torchvision
        triton_attn.fuse(torch.nn.Conv2d(3, 8, 1))
        after = sorted(name for name in sys.modules if name.startswith("triton_attn.fusion.adapters."))
        print(json.dumps([before, after, "timm" in sys.modules]))
        """
    )
    own = "triton_attn.fusion.adapters.sequential"
    assert found == [[own], [own, "triton_attn.fusion.adapters.torchvision"], False]


@pytest.mark.parametrize("folder", ["reference", "triton_attn"])
def test_no_environment_is_written(folder):
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            target = None
            if isinstance(node, (ast.Assign, ast.Delete)):
                target = [t.value for t in node.targets if isinstance(t, ast.Subscript)]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ("putenv", "unsetenv"):
                    raise AssertionError(f"{path}: {ast.unparse(node)}")
                if node.func.attr in ("update", "setdefault", "pop", "clear"):
                    target = [node.func.value]
            for each in target or []:
                assert not ast.unparse(each).endswith("environ"), f"{path}: line {node.lineno} writes the environment"


def test_the_environment_chooses_the_backend_of_all_threads():
    found = python(
        """
        import json, threading
        import triton_attn
        from triton_attn import backend
        seen = [backend.requested_backend()]
        thread = threading.Thread(target=lambda: seen.append(backend.requested_backend()))
        thread.start()
        thread.join()
        print(json.dumps(seen))
        """,
        TRITON_ATTN_BACKEND="reference",
    )
    assert found == ["reference", "reference"]
