"""The passes over a map whose rows and columns are gated, each one launch: both means, the multiply, and backward.

Gates are given to each as seven arguments: the gates themselves, ``(N, C, H, 1)`` and ``(N, C, 1, W)``, and no layer;
or hidden units ``(N, H, m)`` and ``(N, W, m)`` and the layer that makes gates of them, where the map is channels_last.
Behind a batch norm (:mod:`.normed_strips`) what is gated is the normalised map, which is never written.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tuning import rules, strip_rules
from . import passes
from .batch_norm import Gradients, Norm, told_of
from .layout import in_layout, is_channels_last, served, served_both
from .library import Launcher, Results
from .masks import unpacked
from .passes import Maps, multiply, multiply_bwd, multiply_fake, room_bwd, start_over

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


def as_seen(of_rows: Tensor, of_columns: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Vectors as kernels write them, as ``(N, C, H, 1)`` and ``(N, C, 1, W)``.

    The strides of the axes of size 1 are those by which PyTorch knows a channels_last tensor, also side by side.
    """
    if not channels_last:
        return of_rows.unsqueeze(3), of_columns.unsqueeze(2)
    rows, columns = (each.unsqueeze(2).permute(0, 3, 1, 2) for each in (of_rows, of_columns))
    return rows, columns.transpose(2, 3)


def _start(
    kernel: Any, like: Tensor, channels_last: bool, maps: Maps, *, many_sums: bool = False, **arguments: Any
) -> None:
    """Start a kernel that walks over the rows of a map."""
    _, channels, height, width = like.shape
    rule = strip_rules.strips(channels, height, width, channels_last, many_sums=many_sums)
    sizes = {"channels": (channels, "BLOCK_C"), "height": (height, "CHUNK"), "width": (width, "BLOCK_W")}
    start_over(kernel, like, channels_last, rule, sizes, maps, **arguments)


class Parts(NamedTuple):
    """What the pass that sums over rows and columns leaves: vectors of parts, and two sums of each program's block."""

    rows: Tensor
    columns: Tensor
    part: Tensor | None
    moment: Tensor | None

    @property
    def arguments(self) -> dict[str, Any]:
        """As the kernel takes them."""
        return {f"{name}_ptr": each for name, each in zip(self._fields, self, strict=True)}


def parts_of(x: Tensor, channels_last: bool) -> tuple[int, int]:
    """In how many parts rows and columns are summed."""
    _, channels, height, width = x.shape
    config = strip_rules.strips(channels, height, width, channels_last)
    return rules.cdiv(width, config["BLOCK_W"]), rules.cdiv(height, config["CHUNK"])


def empty_parts(x: Tensor, channels_last: bool, dtype: torch.dtype | None = None, *, blocks: bool = False) -> Parts:
    """Room for sums of rows and columns, and with ``blocks`` for those of each program's block, ``(N, S, C)``."""
    row_parts, column_parts = parts_of(x, channels_last)
    size = x.shape[0], row_parts * column_parts, x.shape[1]
    of_blocks = (x.new_empty(size, dtype=torch.float32) if blocks else None for _ in range(2))
    return Parts(*_empty_strips(x, channels_last, row_parts, column_parts, dtype), *of_blocks)


def sums(
    x: Tensor,
    channels_last: bool,
    grad: Tensor | None = None,
    gates: dict[str, Any] = NO_GATES,
    bits: Tensor | None = None,
    dtype: torch.dtype | None = None,
    norm: Norm | None = None,
    *,
    blocks: bool = False,
) -> Parts:
    """The means of x's rows and columns; or with gates the gradients of these, or of their logits, in this dtype.

    With ``blocks`` also mean and squared distances from it of every program's block; or with gates and a norm the sums
    of the gradient of the normalised map, and of that times ``x - mean``.
    """
    from ..kernels.strips import strip_sums_kernel

    found = empty_parts(x, channels_last, dtype, blocks=blocks)
    told = {**found.arguments, **gates, **told_of(norm, x), "GATED": grad is not None, "many_sums": norm is not None}
    passes.sums(_start, strip_sums_kernel, grad, x, channels_last, bits, **told)
    return found


def _as_whole(found: Parts, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Rows and columns, of whose sums these are parts."""
    return as_seen(_whole(found.rows, dtype), _whole(found.columns, dtype), channels_last)


def _whole(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over axis 1."""
    if parts.shape[1] == 1:
        return parts.squeeze(1)
    whole = torch.sum(parts, 1, out=parts.new_empty((parts.shape[0], *parts.shape[2:])))
    return whole if dtype == whole.dtype else torch.empty_like(whole, dtype=dtype).copy_(whole)


def _pool(x: Tensor) -> Results:
    x, channels_last = served(x)
    return _as_whole(sums(x, channels_last), x.dtype, channels_last)


def _pool_fake(x: Tensor) -> Results:
    return empty_seen(*served(x))


def empty_seen(x: Tensor, channels_last: bool, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Room for rows and columns, as the network sees them."""
    of_rows, of_columns = _empty_strips(x, channels_last, dtype=dtype)
    return as_seen(of_rows.squeeze(1), of_columns.squeeze(1), channels_last)


def _sums_bwd(grad: Tensor, x: Tensor, gates: Gates, norm: Norm | None, bits: Tensor | None) -> Results:
    grad, x, channels_last = served_both(grad, x)
    given, dtype = gates.arguments(channels_last), gates.rows.dtype
    found = sums(x, channels_last, grad, given, bits, dtype, norm, blocks=norm is not None)
    return *_as_whole(found, dtype, channels_last), found.part, found.moment


def _sums_bwd_fake(grad: Tensor, x: Tensor, gates: Gates, norm: Norm | None, bits: Tensor | None) -> Results:
    x, channels_last = served(x)
    seen = empty_seen(x, channels_last, gates.rows.dtype)
    return seen if norm is None else (*seen, *empty_parts(x, channels_last, blocks=True)[2:])


def _apply(x: Tensor, gates: Gates, norm: Norm | None, shortcut: Tensor | None, saves: bool) -> Results:
    from ..kernels.strips import strip_apply_fwd_kernel

    x, channels_last = served(x)
    shortcut, given = in_layout(shortcut, channels_last), gates.arguments(channels_last) | told_of(norm, x)
    return multiply(_start, strip_apply_fwd_kernel, x, channels_last, shortcut, saves, empty_bits, **given)


def apply_bwd(
    grad: Tensor,
    x: Tensor | None,
    gates: Gates,
    bits: Tensor | None,
    drows: Tensor,
    dcolumns: Tensor,
    channels_last: bool,
    norm: Norm | None = None,
    by: Gradients | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and of the shortcut; x itself is for a norm in training, as ``by`` is."""
    from ..kernels.strips import strip_apply_bwd_kernel

    given = gates.arguments(channels_last) | told_of(norm, grad)
    given |= {"drow_ptr": in_order(drows, channels_last), "dcolumn_ptr": in_order(dcolumns, channels_last)}
    given |= {"by_mean_ptr": by and by.by_mean, "by_variance_ptr": by and by.by_variance}
    like, reads = (grad, False) if x is None else (x, True)
    return multiply_bwd(_start, strip_apply_bwd_kernel, grad, like, channels_last, bits, reads, **given)


def _apply_bwd(
    grad: Tensor, gates: Gates, bits: Tensor | None, drows: Tensor, dcolumns: Tensor, channels_last: bool
) -> Results:
    """The gradients of x, which has this layout, and of the shortcut."""
    return apply_bwd(served(grad, channels_last)[0], None, gates, bits, drows, dcolumns, channels_last)


def _apply_bwd_fake(
    grad: Tensor, gates: Gates, bits: Tensor | None, drows: Tensor, dcolumns: Tensor, channels_last: bool
) -> Results:
    grad, _ = served(grad, channels_last)
    return room_bwd(grad, channels_last, bits)


POOL = Launcher("pool_rows_and_columns", _pool, _pool_fake, 2)
APPLY = Launcher("gate_rows_and_columns", _apply, partial(multiply_fake, bits_of=empty_bits), 2)
SUMS_BWD = Launcher("gate_rows_and_columns_backward_gates", _sums_bwd, _sums_bwd_fake, 4)
APPLY_BWD = Launcher("gate_rows_and_columns_backward_map", _apply_bwd, _apply_bwd_fake, 2)
