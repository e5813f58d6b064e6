"""The command line in processes of its own, forked from one that has the imports behind it: seconds saved each."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["triton_attn.train.run", "triton_attn.train.evaluate"])


def _run(words: Sequence[str], log: str, largest_file: int | None, kill_at_file: int | None) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    from triton_attn.cli import main

    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if kill_at_file is not None:
        _die_at_file(kill_at_file)
    sys.exit(main(words))


def _die_at_file(number: int) -> None:
    """Kill this process as it has written its next file but ``number``, and before that gets its name."""
    from triton_attn import files
    from triton_attn.train import atomic

    plain, left = files.flush, iter(range(number))

    def flush(file: Path) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(file)

    files.flush = atomic.flush = flush


class Command:
    """``triton-attn`` at work.

    Args:
        words: the command line.
        log: where to put what it prints.
        largest_file: no file may be larger: a write beyond that fails, as it does on a full disk.
        kill_at_file: kill it in the middle of its file of this number, from 0.
    """

    def __init__(
        self, words: Sequence[object], log: Path, largest_file: int | None = None, kill_at_file: int | None = None
    ) -> None:
        self.log = log
        how = ([str(word) for word in words], str(log), largest_file, kill_at_file)
        self.process = _context.Process(target=_run, args=how)
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
