"""What a call keeps alive for its backward: the tensors that autograd saves, each storage once, parameters left out.

The input counts where the call keeps it, though the layer before may keep it too, and so does the output; how much of
it is the output is said beside, since a layer behind often keeps that anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Kept:
    """Bytes by the address of the storage that they lie in."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.storages.values())

    def of(self, t: Tensor) -> int:
        """Those that are kept of a tensor's storage: all or none."""
        return self.storages.get(t.untyped_storage().data_ptr(), 0)


@contextlib.contextmanager
def count_kept(parameters: Iterable[Tensor] = ()) -> Iterator[Kept]:
    """Note what is saved within; look at it while the output is alive, for what is freed may lie elsewhere by then."""
    left_out = {t.untyped_storage().data_ptr() for t in parameters}
    kept = Kept()

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in left_out:
            kept.storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield kept
