"""Gates of rows and of columns, by a network of anybody's that PyTorch runs between the squeeze and the apply.

Passes over the map: 3 forward (both means in one) and 4 backward; a shortcut adds one each, and a mask of one bit per
element. The two steps are linked (:mod:`.linked`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tuning import rules, strip_rules
from .gating import start_over, unpacked
from .layout import empty_map, is_channels_last, served
from .library import Launcher, Results, as_kept, keep
from .linked import Link, added, in_one, is_wider, unchanged, wants_gradient

Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def gate_rows_and_columns(x: Tensor, network: Network, shortcut: Tensor | None = None) -> Tensor:
    """``x · rows · columns`` with ``rows, columns = network(mean_w x, mean_h x)``, or ``relu(… + shortcut)``.

    ``network`` takes the means ``(N, C, H, 1)`` and ``(N, C, 1, W)`` in the dtype of ``x``, and returns gates of these
    shapes. Not for compilation, where nothing can call the network from within an op.
    """
    link, last = Link(), in_one(x, shortcut)
    if wants_gradient(x, last):
        u, after, of_rows, of_columns = _Pool.apply(link, x, last)
    else:
        u, after, (of_rows, of_columns) = x, last, POOL(x)
    gates = network(of_rows, of_columns)
    if any(is_wider(gate, x) for gate in gates):
        y = x * gates[0] * gates[1]
        return y if shortcut is None else torch.relu(y + shortcut)
    if wants_gradient(u, *gates):
        y = _Multiply.apply(link, u, *gates, after)
    else:
        found: Any = APPLY(u, *gates, after, False)
        y = found[0]
    return added(y, shortcut, last)


class _Pool(torch.autograd.Function):
    """The means; the map and the shortcut as they are, for :class:`_Multiply` alone."""

    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, shortcut: Tensor | None) -> Any:
        of_rows, of_columns = POOL(x)
        ctx.link, ctx.size, ctx.channels_last = link, x.shape, served(x)[1]
        ctx.set_materialize_grads(False)
        return *unchanged(x, shortcut), of_rows, of_columns

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, dshortcut: Tensor | None, drows: Tensor | None, dcolumns: Tensor | None
    ) -> Any:
        deferred = ctx.link.take()
        if grad is not None and deferred is not None and drows is not None and dcolumns is not None:
            row_gate, column_gate, bits = deferred
            dx, dshortcut = APPLY_BWD(grad, row_gate, column_gate, bits, drows, dcolumns, ctx.channels_last)
            return None, dx, dshortcut
        if grad is not None and deferred is not None:  # a network that does not look at one of the means
            grad, dshortcut = _multiply_bwd(served(grad, ctx.channels_last)[0], *deferred)
        for part, length in ((drows, ctx.size[3]), (dcolumns, ctx.size[2])):
            if part is not None:
                own = (part / length).expand(ctx.size)
                grad = own if grad is None else (grad + own).to(grad.dtype)
        return None, grad, dshortcut


class _Multiply(torch.autograd.Function):
    """``x · rows · columns``, or with the shortcut, whose gradient of x is y's until :class:`_Pool` finishes it."""

    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, row_gate: Tensor, column_gate: Tensor, shortcut: Tensor | None) -> Any:
        y, bits = APPLY(x, row_gate, column_gate, shortcut, True)
        ctx.link = link
        keep(ctx, x, row_gate, column_gate, bits)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved: Any = as_kept(ctx)
        x, row_gate, column_gate, bits = saved
        _, needs_map, needs_row, needs_column, needs_shortcut = ctx.needs_input_grad
        if ctx.link.is_differentiated_again():
            grad = grad if bits is None else torch.where(mask_of(bits, x), grad, 0.0)
            moved = (grad * x).float() if x.itemsize < 4 else grad * x
            drow = (moved * column_gate).sum(3, keepdim=True).to(row_gate.dtype) if needs_row else None
            dcolumn = (moved * row_gate).sum(2, keepdim=True).to(column_gate.dtype) if needs_column else None
            dx = (grad * row_gate * column_gate).to(x.dtype) if needs_map else None
            return None, dx, drow, dcolumn, grad if needs_shortcut else None
        drow = dcolumn = None
        if needs_row or needs_column:
            drow, dcolumn = SUMS_BWD(grad, x, row_gate, column_gate, bits)
            dcolumn = dcolumn.to(column_gate.dtype)  # type: ignore[union-attr]
        ctx.link.deferred = row_gate, column_gate, bits
        return None, grad if needs_map or needs_shortcut else None, drow, dcolumn, None


def _multiply_bwd(
    grad: Tensor, row_gate: Tensor, column_gate: Tensor, bits: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the map and of the shortcut, by PyTorch."""
    masked = grad if bits is None else torch.where(mask_of(bits, grad), grad, 0.0)
    return (masked * row_gate * column_gate).to(grad.dtype), None if bits is None else masked


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
    row_gate: Tensor | None = None,
    column_gate: Tensor | None = None,
    bits: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The means of rows and columns; or with gates, in the kernels' order, the gradients of these, in this dtype."""
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
        row_gate_ptr=row_gate,
        column_gate_ptr=column_gate,
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


def _sums_bwd(grad: Tensor, x: Tensor, row_gate: Tensor, column_gate: Tensor, bits: Tensor | None) -> Results:
    x, channels_last = served(x)
    grad, _ = served(grad, channels_last)
    gates = in_order(row_gate, channels_last), in_order(column_gate, channels_last)
    return _sums(x, channels_last, grad, *gates, bits, row_gate.dtype)


def _sums_bwd_fake(grad: Tensor, x: Tensor, row_gate: Tensor, column_gate: Tensor, bits: Tensor | None) -> Results:
    x, channels_last = served(x)
    of_rows, of_columns = _empty_strips(x, channels_last, dtype=row_gate.dtype)
    return _as_seen(of_rows.squeeze(1), of_columns.squeeze(1), channels_last)


def _apply(x: Tensor, row_gate: Tensor, column_gate: Tensor, shortcut: Tensor | None, saves: bool) -> Results:
    from ..kernels.strips import strip_apply_fwd_kernel

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
        row_gate_ptr=in_order(row_gate, channels_last),
        column_gate_ptr=in_order(column_gate, channels_last),
        shortcut_ptr=shortcut,
        HAS_SHORTCUT=shortcut is not None,
        SAVE_BITS=bits is not None,
    )
    return y, bits


def _apply_fake(x: Tensor, row_gate: Tensor, column_gate: Tensor, shortcut: Tensor | None, saves: bool) -> Results:
    x, channels_last = served(x)
    return empty_map(x, channels_last), empty_bits(x, channels_last) if saves and shortcut is not None else None


def _apply_bwd(
    grad: Tensor,
    row_gate: Tensor,
    column_gate: Tensor,
    bits: Tensor | None,
    drows: Tensor,
    dcolumns: Tensor,
    channels_last: bool,
) -> Results:
    """The gradients of x, which has this layout, and of the shortcut."""
    from ..kernels.strips import strip_apply_bwd_kernel

    grad, _ = served(grad, channels_last)
    dx = empty_map(grad, channels_last)
    dshortcut = None if bits is None else empty_map(grad, channels_last)
    row_gate, column_gate, drows, dcolumns = (
        in_order(each, channels_last) for each in (row_gate, column_gate, drows, dcolumns)
    )
    _start(
        strip_apply_bwd_kernel,
        grad,
        channels_last,
        {"g": grad, "dx": dx, "s": dshortcut},
        dx_ptr=dx,
        dshortcut_ptr=dshortcut,
        grad_ptr=grad,
        bits_ptr=bits,
        row_gate_ptr=row_gate,
        column_gate_ptr=column_gate,
        drow_ptr=drows,
        dcolumn_ptr=dcolumns,
        HAS_BITS=bits is not None,
    )
    return dx, dshortcut


def _apply_bwd_fake(
    grad: Tensor, row_gate: Tensor, column_gate: Tensor, bits: Tensor | None, *others: Tensor | bool
) -> Results:
    channels_last = bool(others[-1])
    grad, _ = served(grad, channels_last)
    return empty_map(grad, channels_last), None if bits is None else empty_map(grad, channels_last)


POOL = Launcher("pool_rows_and_columns(Tensor x) -> (Tensor, Tensor)", _pool, _pool_fake)
APPLY = Launcher(
    "gate_rows_and_columns(Tensor x, Tensor row_gate, Tensor column_gate, Tensor? shortcut, bool saves)"
    " -> (Tensor, Tensor)",
    _apply,
    _apply_fake,
)
SUMS_BWD = Launcher(
    "gate_rows_and_columns_backward_gates(Tensor grad, Tensor x, Tensor row_gate, Tensor column_gate, Tensor? bits)"
    " -> (Tensor, Tensor)",
    _sums_bwd,
    _sums_bwd_fake,
)
APPLY_BWD = Launcher(
    "gate_rows_and_columns_backward_map(Tensor grad, Tensor row_gate, Tensor column_gate, Tensor? bits, Tensor drows,"
    " Tensor dcolumns, bool channels_last) -> (Tensor, Tensor)",
    _apply_bwd,
    _apply_bwd_fake,
)
