"""The passes over a map whose rows and columns are gated, each one launch: both means, the multiply, and backward.

Gates are given to each as seven arguments: the gates themselves, ``(N, C, H, 1)`` and ``(N, C, 1, W)``, and no layer;
or hidden units ``(N, H, m)`` and ``(N, W, m)`` and the layer that makes gates of them, where the map is channels_last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tuning import rules, strip_rules
from .gating import start_over, unpacked
from .layout import empty_map, is_channels_last, served
from .library import Launcher, Results

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


def _gate_arguments(rows: Tensor, columns: Tensor, channels_last: bool, *layer: Any) -> dict[str, Any]:
    """What makes the gates, as the kernels take it."""
    row_weight, row_bias, column_weight, column_bias, activation = layer
    by_layer = row_weight is not None
    return {
        "row_gate_ptr": rows if by_layer else in_order(rows, channels_last),
        "row_weight_ptr": row_weight,
        "row_bias_ptr": row_bias,
        "column_gate_ptr": columns if by_layer else in_order(columns, channels_last),
        "column_weight_ptr": column_weight,
        "column_bias_ptr": column_bias,
        "hidden": rows.shape[2] if by_layer else 0,
        "BY_LAYER": by_layer,
        "HAS_BIAS": row_bias is not None,
        "ACTIVATION": activation,
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


def _start(kernel: Any, like: Tensor, channels_last: bool, maps: dict[str, Tensor | None], **arguments: Any) -> None:
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
    _start(
        strip_sums_kernel,
        x,
        channels_last,
        {"x": x, "g": grad},
        rows_ptr=of_rows,
        columns_ptr=of_columns,
        x_ptr=x,
        grad_ptr=grad,
        bits_ptr=bits,
        **gates,
        GATED=grad is not None,
        HAS_BITS=bits is not None,
    )
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


def _pool_fake(x: Tensor) -> Results:
    x, channels_last = served(x)
    of_rows, of_columns = _empty_strips(x, channels_last)
    return _as_seen(of_rows.squeeze(1), of_columns.squeeze(1), channels_last)


def _sums_bwd(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor, *others: Any) -> Results:
    *layer, bits = others
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    return _sums(x, channels_last, grad, _gate_arguments(rows, columns, channels_last, *layer), bits, rows.dtype)


def _sums_bwd_fake(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor, *others: Any) -> Results:
    x, channels_last = served(x)
    of_rows, of_columns = _empty_strips(x, channels_last, dtype=rows.dtype)
    return _as_seen(of_rows.squeeze(1), of_columns.squeeze(1), channels_last)


def _apply(x: Tensor, rows: Tensor, columns: Tensor, *others: Any) -> Results:
    from ..kernels.strips import strip_apply_fwd_kernel

    *layer, shortcut, saves = others
    x, channels_last = served(x)
    shortcut = None if shortcut is None else served(shortcut, channels_last)[0]
    y = empty_map(x, channels_last)
    bits = empty_bits(x, channels_last) if saves and shortcut is not None else None
    _start(
        strip_apply_fwd_kernel,
        x,
        channels_last,
        {"x": x, "y": y, "s": shortcut},
        y_ptr=y,
        bits_ptr=bits,
        x_ptr=x,
        **_gate_arguments(rows, columns, channels_last, *layer),
        shortcut_ptr=shortcut,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_BITS=bits is not None,
    )
    return y, bits


def _apply_fake(x: Tensor, rows: Tensor, columns: Tensor, *others: Any) -> Results:
    *_, shortcut, saves = others
    x, channels_last = served(x)
    return empty_map(x, channels_last), empty_bits(x, channels_last) if saves and shortcut is not None else None


def _apply_bwd(grad: Tensor, rows: Tensor, columns: Tensor, *others: Any) -> Results:
    """The gradients of x, which has this layout, and of the shortcut."""
    from ..kernels.strips import strip_apply_bwd_kernel

    *layer, bits, drows, dcolumns, channels_last = others
    grad, _ = served(grad, channels_last)
    dx = empty_map(grad, channels_last)
    dshortcut = None if bits is None else empty_map(grad, channels_last)
    _start(
        strip_apply_bwd_kernel,
        grad,
        channels_last,
        {"g": grad, "dx": dx, "s": dshortcut},
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        bits_ptr=bits,
        **_gate_arguments(rows, columns, channels_last, *layer),
        drow_ptr=in_order(drows, channels_last),
        dcolumn_ptr=in_order(dcolumns, channels_last),
        HAS_BITS=bits is not None,
    )
    return dx, dshortcut


def _apply_bwd_fake(grad: Tensor, rows: Tensor, columns: Tensor, *others: Any) -> Results:
    *_, bits, _, _, channels_last = others
    grad, _ = served(grad, channels_last)
    return empty_map(grad, channels_last), None if bits is None else empty_map(grad, channels_last)


POOL = Launcher("pool_rows_and_columns(Tensor x) -> (Tensor, Tensor)", _pool, _pool_fake)
GATES = (
    "Tensor rows, Tensor columns, Tensor? row_weight, Tensor? row_bias, Tensor? column_weight, Tensor? column_bias,"
    " str activation"
)
APPLY = Launcher(
    f"gate_rows_and_columns(Tensor x, {GATES}, Tensor? shortcut, bool saves) -> (Tensor, Tensor)",
    _apply,
    _apply_fake,
)
SUMS_BWD = Launcher(
    f"gate_rows_and_columns_backward_gates(Tensor grad, Tensor x, {GATES}, Tensor? bits) -> (Tensor, Tensor)",
    _sums_bwd,
    _sums_bwd_fake,
)
APPLY_BWD = Launcher(
    f"gate_rows_and_columns_backward_map(Tensor grad, {GATES}, Tensor? bits, Tensor drows, Tensor dcolumns,"
    " bool channels_last) -> (Tensor, Tensor)",
    _apply_bwd,
    _apply_bwd_fake,
)
