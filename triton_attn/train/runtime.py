"""The processes, their devices, precision and random state."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration

from .data import epoch_seed
from .errors import UserError


def check_amp(amp: str) -> None:
    """Raise a UserError if no device here has the mixed precision that is asked for."""
    if amp == "fp16" and not torch.accelerator.is_available():
        raise UserError("--amp: fp16 needs a GPU, and there is none here; expected bf16 or no")


def start(amp: str, accumulate: int = 1) -> Accelerator:
    """Join the other processes, if a launcher started several; on CPUs they talk over gloo.

    Args:
        amp: the mixed precision: ``bf16``, ``fp16`` or ``no``.
        accumulate: how many batches a step of the optimizer is of.
    """
    # Attention that is not scaled is nearly one-hot, and the rest of it so small that CPUs compute it at a hundredth
    # of their speed, unless such numbers count as zero. Before the first parallel work: threads inherit it.
    torch.set_flush_denormal(True)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=amp,
        gradient_accumulation_steps=accumulate,
        dataloader_config=DataLoaderConfiguration(non_blocking=torch.cuda.is_available()),
    )


def is_main() -> bool:
    """Whether this is the process that writes, as far as the launcher says."""
    return os.environ.get("RANK", "0") == "0"


def seed_everything(seed: int, epoch: int, process: int) -> None:
    """Set the random state of Python, NumPy and PyTorch, to a function of these three."""
    mixed = epoch_seed(seed, epoch, process)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)
