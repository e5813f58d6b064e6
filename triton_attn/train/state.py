"""The resumable state of a run, ``last/``: tensors as safetensors, the rest as JSON, nothing that could be executed.

Neither random states nor the schedule are in it: they are functions of the seed and the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from ..files import read_text
from ..reference.weights import present_keys
from .atomic import new_folder
from .errors import UserError
from .optim import load_optimizer, optimizer_tensors
from .rules import check_fields, fields, maybe, number, one_of, whole
from .tensors import check_tensors, read_tensors, tensor_bytes

T = TypeVar("T")

FOLDER = "last"
HISTORY, MODEL, OPTIMIZER, STATE = "history.json", "model.safetensors", "optimizer.safetensors", "state.json"
EMA = "ema.safetensors"
PICKLES = ("optimizer.bin", "custom_checkpoint_0.pkl")
"""What runs of earlier versions have in place of the last two."""

_ABOVE, _SHARE = number("a number of at least 0", lambda x: x >= 0), number("0 to 1", lambda x: 0 <= x <= 1)
ROW = {"epoch": whole(1), "train_accuracy": _SHARE, "val_accuracy": _SHARE} | dict.fromkeys(
    ("train_loss", "val_loss", "lr", "images_per_second", "seconds", "time"), _ABOVE
)
AVERAGED = {"ema_loss": _ABOVE, "ema_accuracy": _SHARE}
"""What an epoch has besides, where the average of the weights is evaluated."""

FIELDS = {
    "version": one_of(1),
    "processes": whole(1),
    "scaler": maybe(fields({"scale": number("a number above 0", lambda x: x > 0), "_growth_tracker": whole(0)})),
}


@dataclass(frozen=True)
class State:
    """What a run goes on from: its network, its optimizer, and if there is one, the gradient scaler of mixed precision
    and the average of the weights."""

    model: nn.Module
    optimizer: Optimizer
    scaler: Any = None
    ema: nn.Module | None = None

    def save(self, output: Path, history: Sequence[Mapping[str, Any]], processes: int) -> None:
        """Save everything that the next epoch depends on; called by one process, after an epoch.

        Killed at any moment, the folder holds this state or the one before.

        Raises:
            OSError: it cannot be written; the one before is whole.
        """
        scaler = self.scaler.state_dict() if self.scaler is not None else {}
        kept = {key: scaler[key] for key in ("scale", "_growth_tracker") if key in scaler}
        fields = {"version": 1, "processes": processes, "scaler": kept or None}
        with new_folder(output / FOLDER) as folder:
            (folder / MODEL).write_bytes(tensor_bytes(self.model.state_dict()))
            (folder / OPTIMIZER).write_bytes(tensor_bytes(optimizer_tensors(self.optimizer, self.model)))
            if self.ema is not None:
                (folder / EMA).write_bytes(tensor_bytes(self.ema.state_dict()))
            (folder / HISTORY).write_text(json.dumps(list(history)), encoding="utf-8")
            (folder / STATE).write_text(json.dumps(fields), encoding="utf-8")

    def load(self, output: Path) -> int:
        """Put the saved state back; returns the number of processes that saved it.

        Raises:
            UserError: a file of it is missing, truncated or foreign.
        """
        found = _read(output, STATE, lambda file: check_fields(_json(file), FIELDS))
        for module, name in ((self.model, MODEL), (self.ema, EMA)):
            if module is not None:
                module.load_state_dict(_read(output, name, partial(_weights, module)))
        _read(output, OPTIMIZER, lambda file: load_optimizer(self.optimizer, self.model, read_tensors(file)[0]))
        if self.scaler is not None and found["scaler"]:
            self.scaler.load_state_dict(self.scaler.state_dict() | found["scaler"])
        return int(found["processes"])


def _weights(module: nn.Module, file: Path) -> dict[str, Tensor]:
    own = module.state_dict()
    found = present_keys(read_tensors(file)[0], own)
    check_tensors(found, own)
    return found


def read_history(output: Path) -> list[dict[str, Any]]:
    """The epochs that a run has behind it; none if it was killed before the end of the first.

    Raises:
        UserError: the state cannot be read.
    """
    return _read(output, HISTORY, _rows) if (output / FOLDER).exists() else []


def _rows(file: Path) -> list[dict[str, Any]]:
    found = _json(file)
    if not isinstance(found, list) or not found:
        raise ValueError("expected a list of epochs")
    rows = [check_fields(row, ROW | AVERAGED, AVERAGED) for row in found]
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError("its epochs are not 1, 2, 3 …")
    return rows


def _json(file: Path) -> Any:
    return json.loads(read_text(file))


def _read(output: Path, name: str, read: Callable[[Path], T]) -> T:
    file = output / FOLDER / name
    try:
        return read(file)
    except (ValueError, OSError, RecursionError) as error:
        reason = " ".join(str((isinstance(error, OSError) and error.strerror) or error).split())[:300]
        pickles = [old for old in PICKLES if (output / FOLDER / old).exists()]
        if pickles and not file.exists():
            reason = (
                f"an earlier version of triton_attn wrote {', '.join(pickles)}: pickles, which could run code, and are "
                "no longer loaded"
            )
        raise UserError(
            f"{file}: cannot be read ({reason}); expected the state that triton-attn train wrote. The weights in "
            f"{output}/last.safetensors can start another run (--weights)"
        ) from error
