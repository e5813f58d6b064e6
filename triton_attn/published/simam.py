"""SimAM, fused: one op.

op        ops/simam.py
forward   moments, simam_fwd
backward  simam_sums, simam_bwd
saved     x, its moments, ReLU's mask in bits
"""

from __future__ import annotations

from torch import Tensor

from .. import backend, ops
from ..reference import published
from ..reference.common import check_map


class SimAM(published.SimAM):
    __doc__ = published.SimAM.__doc__

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if backend.is_plain(x):
            return super().forward(x, shortcut)
        if (y := ops.SIMAM.again(x, self.gamma, shortcut, self.e_lambda)) is not None:
            return y
        if not backend.use_triton(x, self.gamma, shortcut):
            return super().forward(x, shortcut)
        check_map(x, self.channels, self.gamma, shortcut)
        return ops.serve(ops.SIMAM, x, (self.gamma,), shortcut, float(self.e_lambda))
