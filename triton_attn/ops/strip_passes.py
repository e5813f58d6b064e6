"""The passes over a map whose rows and columns are gated, each one launch: both means, the multiply, and backward.

Gates are given to each as seven arguments: the gates themselves, ``(N, C, H, 1)`` and ``(N, C, 1, W)``, and no layer;
or hidden units ``(N, H, m)`` and ``(N, W, m)`` and the layer that makes gates of them, where the map is channels_last.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tuning import rules, strip_rules
from .layout import in_layout, is_channels_last, served, served_both
from .library import Launcher, Results
from .masks import unpacked
from .passes import Maps, multiply, multiply_bwd, multiply_fake, room_bwd, start_over, sums

NO_LAYER: Any = (None, None, None, None, "none")


def empty_bits(x: Tensor, channels_last: bool) -> Tensor:
    """Room for the mask of a map, eight columns of a row to a byte, or eight channels of a position."""
    batch, channels, height, width = x.shape
    sizes = (height, width, rules.cdiv(channels, 8)) if channels_last else (channels, height, rules.cdiv(width, 8))
    return torch.empty((batch, *sizes), dtype=torch.uint8, device=x.device)


def mask_of(bits: Tensor, x: Tensor) -> Tensor:
    """The mask of a map like ``x``, whose bits these are, as booleans ``(N, C, H, W)``."""
    if is_channels_last(x):
        return unpacked(bits)[..., : x.shape[1]].permute(0, 3, 1, 2)
    return unpacked(bits)[..., : x.shape[3]]


def in_order(strip: Tensor, channels_last: bool) -> Tensor:
    """A vector of rows or of columns, in memory as the kernels want it."""
    return strip.permute(0, 2, 3, 1).contiguous() if channels_last else strip.contiguous()


class Gates(NamedTuple):
    """The gates of rows and columns, or hidden units and the layer."""

    rows: Tensor
    columns: Tensor
    row_weight: Tensor | None
    row_bias: Tensor | None
    column_weight: Tensor | None
    column_bias: Tensor | None
    activation: str

    def arguments(self, channels_last: bool) -> dict[str, Any]:
        """What makes the gates, as the kernels take it."""
        by_layer = self.row_weight is not None
        rows, columns = self.rows, self.columns
        return {
            "row_gate_ptr": rows if by_layer else in_order(rows, channels_last),
            "row_weight_ptr": self.row_weight,
            "row_bias_ptr": self.row_bias,
            "column_gate_ptr": columns if by_layer else in_order(columns, channels_last),
            "column_weight_ptr": self.column_weight,
            "column_bias_ptr": self.column_bias,
            "hidden": rows.shape[2] if by_layer else 0,
            "BY_LAYER": by_layer,
            "HAS_BIAS": self.row_bias is not None,
            "ACTIVATION": self.activation,
        }


NO_GATES: dict[str, Any] = dict.fromkeys(
    ("row_gate_ptr", "row_weight_ptr", "row_bias_ptr", "column_gate_ptr", "column_weight_ptr", "column_bias_ptr")
) | {"hidden": 0, "BY_LAYER": False, "HAS_BIAS": False, "ACTIVATION": "none"}


def _empty_strips(
    x: Tensor, channels_last: bool, row_parts: int = 1, column_parts: int = 1, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Room for sums over columns, and over rows: in parts float32, in one part in this dtype, or that of x."""
    batch, channels, height, width = x.shape
    sizes = (row_parts, height), (column_parts, width)
    of_rows, of_columns = (
        torch.empty(
            (batch, parts, length, channels) if channels_last else (batch, parts, channels, length),
            dtype=torch.float32 if parts > 1 else dtype or x.dtype,
            device=x.device,
        )
        for parts, length in sizes
    )
    return of_rows, of_columns


def _as_seen(of_rows: Tensor, of_columns: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Vectors as kernels write them, as ``(N, C, H, 1)`` and ``(N, C, 1, W)``.

    The strides of the axes of size 1 are those by which PyTorch knows a channels_last tensor, also side by side.
    """
    if not channels_last:
        return of_rows.unsqueeze(3), of_columns.unsqueeze(2)
    rows, columns = (each.unsqueeze(2).permute(0, 3, 1, 2) for each in (of_rows, of_columns))
    return rows, columns.transpose(2, 3)


def _start(kernel: Any, like: Tensor, channels_last: bool, maps: Maps, **arguments: Any) -> None:
    """Start a kernel that walks over the rows of a map."""
    _, channels, height, width = like.shape
    rule = strip_rules.strips(channels, height, width, channels_last)
    sizes = {"channels": (channels, "BLOCK_C"), "height": (height, "CHUNK"), "width": (width, "BLOCK_W")}
    start_over(kernel, like, channels_last, rule, sizes, maps, **arguments)


def _sums(
    x: Tensor,
    channels_last: bool,
    grad: Tensor | None = None,
    gates: dict[str, Any] = NO_GATES,
    bits: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The means of rows and columns; or with gates the gradients of these, or of their logits, in this dtype."""
    from ..kernels.strips import strip_sums_kernel

    _, channels, height, width = x.shape
    config = strip_rules.strips(channels, height, width, channels_last)
    row_parts, column_parts = rules.cdiv(width, config["BLOCK_W"]), rules.cdiv(height, config["CHUNK"])
    of_rows, of_columns = _empty_strips(x, channels_last, row_parts, column_parts, dtype)
    told: dict[str, Any] = {"rows_ptr": of_rows, "columns_ptr": of_columns, "GATED": grad is not None, **gates}
    sums(_start, strip_sums_kernel, grad, x, channels_last, bits, **told)
    dtype = x.dtype if dtype is None else dtype
    return _as_seen(_whole(of_rows, dtype), _whole(of_columns, dtype), channels_last)


def _whole(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over axis 1."""
    if parts.shape[1] == 1:
        return parts.squeeze(1)
    whole = torch.sum(parts, 1, out=parts.new_empty((parts.shape[0], *parts.shape[2:])))
    return whole if dtype == whole.dtype else torch.empty_like(whole, dtype=dtype).copy_(whole)


def _pool(x: Tensor) -> Results:
    x, channels_last = served(x)
    return _sums(x, channels_last)


def _pool_fake(x: Tensor, dtype: torch.dtype | None = None) -> Results:
    x, channels_last = served(x)
    of_rows, of_columns = _empty_strips(x, channels_last, dtype=dtype)
    return _as_seen(of_rows.squeeze(1), of_columns.squeeze(1), channels_last)


def _sums_bwd(grad: Tensor, x: Tensor, gates: Gates, bits: Tensor | None) -> Results:
    grad, x, channels_last = served_both(grad, x)
    return _sums(x, channels_last, grad, gates.arguments(channels_last), bits, gates.rows.dtype)


def _sums_bwd_fake(grad: Tensor, x: Tensor, gates: Gates, bits: Tensor | None) -> Results:
    return _pool_fake(x, gates.rows.dtype)


def _apply(x: Tensor, gates: Gates, shortcut: Tensor | None, saves: bool) -> Results:
    from ..kernels.strips import strip_apply_fwd_kernel

    x, channels_last = served(x)
    shortcut, given = in_layout(shortcut, channels_last), gates.arguments(channels_last)
    return multiply(_start, strip_apply_fwd_kernel, x, channels_last, shortcut, saves, empty_bits, **given)


def _apply_bwd(
    grad: Tensor, gates: Gates, bits: Tensor | None, drows: Tensor, dcolumns: Tensor, channels_last: bool
) -> Results:
    """The gradients of x, which has this layout, and of the shortcut."""
    from ..kernels.strips import strip_apply_bwd_kernel

    grad, _ = served(grad, channels_last)
    given = gates.arguments(channels_last)
    given |= {"drow_ptr": in_order(drows, channels_last), "dcolumn_ptr": in_order(dcolumns, channels_last)}
    return multiply_bwd(_start, strip_apply_bwd_kernel, grad, grad, channels_last, bits, **given)


def _apply_bwd_fake(
    grad: Tensor, gates: Gates, bits: Tensor | None, drows: Tensor, dcolumns: Tensor, channels_last: bool
) -> Results:
    grad, _ = served(grad, channels_last)
    return room_bwd(grad, channels_last, bits)


POOL = Launcher("pool_rows_and_columns", _pool, _pool_fake, 2)
APPLY = Launcher("gate_rows_and_columns", _apply, partial(multiply_fake, bits_of=empty_bits), 2)
SUMS_BWD = Launcher("gate_rows_and_columns_backward_gates", _sums_bwd, _sums_bwd_fake, 2)
APPLY_BWD = Launcher("gate_rows_and_columns_backward_map", _apply_bwd, _apply_bwd_fake, 2)
