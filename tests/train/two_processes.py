"""Train as ``triton-attn train`` does, and leave the sum of this process's weights beside the run: for torchrun."""

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from triton_attn.cli import parse
from triton_attn.train.options import resolve
from triton_attn.train.run import train
from triton_attn.train.state import State


def kill_after_an_epoch() -> None:
    """Kill the process that saves the state, once it has."""
    save = State.save

    def save_and_die(self: State, *what: Any, **how: Any) -> None:
        save(self, *what, **how)
        os.kill(os.getpid(), signal.SIGKILL)

    State.save = save_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "KILL_AFTER_AN_EPOCH" in os.environ:
        kill_after_an_epoch()
    config, dataset = resolve(parse(sys.argv[1:]))
    model = train(config, dataset)
    assert model is not None
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    Path(f"{config.output}.{os.environ['RANK']}.sum").write_text(digest.hexdigest())
