"""Small image folders, and the command line called in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from image_folders import make_folder
from processes import Command
from small_networks import use_small

SMALL = ("--image-size", 16, "--batch-size", 8, "--workers", 0)


@pytest.fixture(scope="session")
def shared_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 15 images of 16×16: 24 to train on, 6 held out. Not to be touched."""
    return make_folder(tmp_path_factory.mktemp("pictures") / "data", {"cat": 15, "dog": 15})


@pytest.fixture
def pictures(shared_pictures: Path, tmp_path: Path) -> Path:
    """The same, for one test to do with as it likes."""
    return Path(shutil.copytree(shared_pictures, tmp_path / "pictures"))


@pytest.fixture(scope="session")
def _trained(shared_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    network = ("--attention", "se", "--where", "layer4", "--attention-kwargs", "reduction=8", "--channels-last")
    words = ("--data", shared_pictures, "--output", output, "--epochs", 2, "--optimizer", "sgd")
    Command(["train", *words, *network, *SMALL], output.with_suffix(".log")).finish()
    return output


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A finished run of two epochs, to do with as the test likes."""
    return Path(shutil.copytree(_trained, tmp_path / "run"))


@pytest.fixture(scope="module", autouse=True)
def small(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is called ``resnet18`` is small here, in the processes of :class:`Command` too.

    Not in files that say ``WHOLE_NETWORKS = True``.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "WHOLE_NETWORKS", False):
            use_small(patch)
        yield


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Accelerate keeps its state for the life of a process; what a run sets must not reach other tests."""
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    state = torch.get_rng_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_flush_denormal(False)
    torch.set_rng_state(state)


@pytest.fixture
def triton_attn_main(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call ``triton-attn`` with these words; returns the exit status, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        from triton_attn.cli import main

        try:
            status = main([str(word) for word in words])
        except SystemExit as exit:  # argparse
            status = int(exit.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call
