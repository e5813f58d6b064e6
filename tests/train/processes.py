"""The command line in processes of its own, forked from one that has the imports behind it: seconds saved each."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["triton_attn.train.run", "triton_attn.train.evaluate"])


def _run(words: Sequence[str], log: str) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    from triton_attn.cli import main

    sys.exit(main(words))


class Command:
    """``triton-attn`` at work; ``log`` has what it printed."""

    def __init__(self, words: Sequence[object], log: Path) -> None:
        self.log = log
        self.process = _context.Process(target=_run, args=([str(word) for word in words], str(log)))
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
