"""The resumable state of a run, ``last/``: what accelerate saves, and the history of the run as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .atomic import begin_folder, swap_folder
from .errors import UserError

FOLDER, HISTORY = "last", "history.json"


def save_state(accelerator: Accelerator, output: Path, history: Sequence[dict[str, Any]]) -> None:
    """Save everything that the next epoch depends on; called by every process, after an epoch.

    Killed at any moment, the folder holds this state or the one before.
    """
    folder = output / FOLDER
    if accelerator.is_main_process:
        (begin_folder(folder) / HISTORY).write_text(json.dumps(list(history)), encoding="utf-8")
    accelerator.wait_for_everyone()
    accelerator.save_state(str(folder.with_name(f".{FOLDER}.new")))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        swap_folder(folder)


def read_history(output: Path) -> list[dict[str, Any]]:
    """The epochs that a run has behind it; none if it was killed before the end of the first.

    Raises:
        UserError: the state cannot be read.
    """
    folder = output / FOLDER
    if not folder.exists():
        return []
    try:
        history = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
        if [row["epoch"] for row in history] != list(range(1, len(history) + 1)) or not history:
            raise ValueError("its epochs are not 1, 2, 3 …")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / HISTORY}: cannot be read ({error}); {_expected(output)}") from error
    return history


def load_state(accelerator: Accelerator, output: Path) -> None:
    """Put the state back into what ``accelerator`` prepared and registered.

    Raises:
        UserError: a file of it is missing, truncated or foreign.
    """
    folder = output / FOLDER
    try:
        accelerator.load_state(str(folder))
    except Exception as error:  # pickle, safetensors, zip and torch each have their own
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: cannot be read ({type(error).__name__}: {reason}); {_expected(output)}") from error


def _expected(output: Path) -> str:
    return (
        f"expected the state that triton-attn train wrote. The weights in {output}/last.safetensors can start another "
        "run (--weights)"
    )
