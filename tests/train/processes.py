"""The command line in processes of its own, forked from one that has the imports behind it: seconds saved each."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_networks import use_small

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["triton_attn.train.run", "triton_attn.train.evaluate", "small_networks"])


def _run(words: Sequence[str], log: str, before: Callable[[], object] | None) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # What is forked here would have its workers forked from a further server, which lives on when this is killed.
    multiprocessing.set_start_method("fork", force=True)
    import torch

    torch.set_num_threads(1)
    from triton_attn.cli import main

    use_small(pytest.MonkeyPatch())
    if before is not None:
        before()
    sys.exit(main(words))


def limit_files(largest: int) -> None:
    """No file of this process may be larger: a write beyond that fails, as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def die_at_file(number: int) -> None:
    """Kill this process as it has written its next file but ``number``, and before that gets its name."""
    from triton_attn import files
    from triton_attn.train import atomic

    plain, left = files.flush, iter(range(number))

    def flush(file: Path) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(file)

    files.flush = atomic.flush = flush


def die_after_an_epoch() -> None:
    """Kill the process that saves the state, once it has."""
    from triton_attn.train.state import State

    save = State.save

    def save_and_die(self: State, *what: Any, **how: Any) -> None:
        save(self, *what, **how)
        os.kill(os.getpid(), signal.SIGKILL)

    State.save = save_and_die  # type: ignore[method-assign]


def be_one_of(rank: int, count: int, port: int, then: Callable[[], object] | None = None) -> None:
    """Say as torchrun does that this process is one of several, and leave the sum of its weights beside the run."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from triton_attn.train import run

    plain = run.train

    def train(config: Any, dataset: Any) -> Any:
        model = plain(config, dataset)
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        Path(f"{config.output}.{rank}.sum").write_text(digest.hexdigest())
        return model

    run.train = train
    if then is not None:
        then()


def free_port() -> int:
    """A port where several processes can meet."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class Command:
    """``triton-attn`` at work.

    Args:
        words: the command line.
        log: where to put what it prints.
        before: is called first, in the new process: a function of a module, for it is pickled.
    """

    def __init__(self, words: Sequence[object], log: Path, before: Callable[[], object] | None = None) -> None:
        self.log = log
        self.process = _context.Process(target=_run, args=(list(map(str, words)), str(log), before))
        self.process.start()

    def wait(self, seconds: float = 900) -> int | None:
        """The exit status, or None if it is still at work."""
        self.process.join(seconds)
        return self.process.exitcode

    def finish(self) -> str:
        """Wait for a good end; returns what was printed."""
        status = self.wait()
        text = self.log.read_text()
        assert status == 0, f"exit status {status}: {text}"
        return text
