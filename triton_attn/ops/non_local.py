"""Non-local attention as one op: ``x + softmax(scale · q kᵀ) v``, with or without the tail of a residual block.

q, k and v are (N, positions, channels), the maps (N, C, H, W) of the same layout. They come as three tensors, or as
one, side by side along the channels: as one matrix product made them, and as one it takes their gradient.

Two ways, by shape (:func:`..tuning.attention_rules.keeps_rows`):

* tiled: no score is ever in memory. What is kept for the backward is linear in the positions: q, k, v, the norms
  of every row, and what was attended, o, for ``delta = Σ grad · o``.
* whole rows, on small maps: the softmax is kept, and the backward is four batched matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from .. import backend
from ..reference import non_local as plain
from ..tuning import attention_rules, chips, rules
from ..tuning.keys import Shape
from . import launch
from .gating import unpacked
from .layout import empty_map, memory_format, served
from .library import Launcher, Op, Results, as_kept, gradients_of, keep

LOG2_E = math.log2(math.e)


def non_local(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    x: Tensor | None = None,
    shortcut: Tensor | None = None,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """``x + attention``, ``relu(x + attention + shortcut)``, or without a map the attention ``(N, L, dv)`` alone.

    Args:
        q, k, v: ``(N, L, d)``, ``(N, S, d)`` and ``(N, S, dv)``; or ``q`` holds all three, ``(N, L, 2 d + dv)``, with
            as many values as ``x`` has channels.
        x: ``(N, dv, H, W)`` with ``H·W = L``.
        shortcut: of ``x``'s shape.
        key_bias, value_bias: ``(d,)`` and ``(dv,)``, with ``x``: what k and v come without, and are attended as if
            they had it.
        scale: of the scores.
    """
    if x is not None:
        x, channels_last = served(x)
        if shortcut is not None and shortcut.dtype != torch.promote_types(x.dtype, q.dtype):
            # The sum is in the wider dtype, as in PyTorch: rare enough to leave it to PyTorch.
            attended = non_local(q, k, v, x=x, key_bias=key_bias, value_bias=value_bias, scale=scale)
            return torch.relu(attended + shortcut)
        if shortcut is not None:
            shortcut, _ = served(shortcut, channels_last)
    return NON_LOCAL(x, q, k, v, shortcut, key_bias, value_bias, float(scale))


@dataclass(frozen=True)
class Problem:
    """q, k and v as the kernels take them: of one layout, without a copy where they came so."""

    q: Tensor
    k: Tensor
    v: Tensor
    channels_last: bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """d, dv, L, S."""
        return self.q.shape[2], self.v.shape[2], self.q.shape[1], self.k.shape[1]

    @property
    def shape(self) -> Shape:
        """What a launch goes by."""
        return Shape(self.q.dtype, self.channels_last, (self.q.shape[2], self.v.shape[2]), self.q.shape[1])

    @property
    def keeps_rows(self) -> bool:
        """Whether the softmax is kept for the backward."""
        return attention_rules.keeps_rows(*self.sizes)

    @property
    def counts_again(self) -> bool:
        """Whether the tiled backward computes rows' sums again, for exactness, and keeps nothing of the forward's."""
        return self.q.itemsize == 4


def problem(q: Tensor, k: Tensor | None, v: Tensor | None, value_width: int, channels_last: bool | None) -> Problem:
    """The problem that the arguments of an op state; without a map to follow, of the layout of ``q``."""
    if k is None or v is None:
        q, k, v = q.split(split_sizes(q, value_width), dim=2)
    if channels_last is None:
        channels_last = q.stride(2) == 1 or q.stride(1) != 1
    q, k, v = (laid_out(t, channels_last) for t in (q, k, v))
    return Problem(q, k, v, channels_last)


def split_sizes(packed: Tensor, value_width: int) -> list[int]:
    """The widths of q, k and v, side by side."""
    width = (packed.shape[2] - value_width) // 2
    return [width, width, value_width]


def laid_out(t: Tensor, channels_last: bool) -> Tensor:
    """``(N, positions, channels)`` with channels contiguous in memory, or positions; copied only where it is not so."""
    inner, outer = (2, 1) if channels_last else (1, 2)
    if (t.stride(inner) == 1 or t.shape[inner] == 1) and (t.shape[outer] == 1 or t.stride(outer) >= t.shape[inner]):
        return t
    return t.contiguous() if channels_last else t.transpose(1, 2).contiguous().transpose(1, 2)


def empty_rows(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """An uninitialised ``(N, positions, channels)`` of the given layout, densely."""
    if channels_last:
        return torch.empty(shape, dtype=dtype, device=t.device)
    return torch.empty((shape[0], shape[2], shape[1]), dtype=dtype, device=t.device).transpose(1, 2)


@overload
def map_rows(t: Tensor) -> Tensor: ...
@overload
def map_rows(t: None) -> None: ...
def map_rows(t: Tensor | None) -> Tensor | None:
    """A map ``(N, C, H, W)`` as ``(N, H·W, C)``, which is a view in the layouts served; what is no map stays."""
    return t if t is None or t.dim() == 3 else t.flatten(2).transpose(1, 2)


def in_units(sizes: Problem, **tensors: Tensor | None) -> dict[str, int]:
    """The launch arguments ``UNIT`` and ``WIDE``, the sizes, and ``stride_<name>n`` and ``…o`` in units."""
    outer = 1 if sizes.channels_last else 2
    strides, batch_strides, reach = (
        dict.fromkeys((f"stride_{name}{axis}" for name in tensors for axis in "no"), 0),
        [],
        0,
    )
    for name, t in tensors.items():
        if t is not None:
            step = 0 if t.shape[outer] == 1 else t.stride(outer)
            # An image by itself may have any batch stride: here that of a batch, so that it takes the same program.
            batch_step = t.stride(0) if t.shape[0] > 1 else step * t.shape[outer]
            strides[f"stride_{name}n"], strides[f"stride_{name}o"] = batch_step, step
            batch_strides.append(batch_step)
            # Tiles end up to 512 rows behind their tensor: what lies there is masked, but its offset must not wrap.
            reach = max(reach, step * (t.shape[outer] + 512))
    d, dv, length, source = sizes.sizes
    contiguous = (d, dv) if sizes.channels_last else (length, source)
    unit = rules.unit(sizes.q.itemsize, math.gcd(*batch_strides), *contiguous, *strides.values())
    names = ("width", "value_width") if sizes.channels_last else ("length", "source")
    return {
        "UNIT": unit,
        "WIDE": reach >= 2**31,
        "width": d,
        "value_width": dv,
        "length": length,
        "source": source,
        **{name: size // unit for name, size in zip(names, contiguous, strict=True)},
        **{name: stride // unit for name, stride in strides.items()},
    }


def scaled(scale: float) -> dict[str, Any]:
    """The launch arguments of the scale: the kernels take maxima of scores, and so want it positive."""
    return {"scale": abs(scale) * LOG2_E, "NEGATIVE": scale < 0}


def products(like: Tensor) -> dict[str, Any]:
    """The launch arguments of a kernel's products."""
    chip = chips.chip_of(like.device)
    # The interpreter cannot multiply in bfloat16.
    return {"UPCAST": backend.interpreting(), "PRECISION": chips.precision(like.dtype, chip)}


def forward(
    x: Tensor | None,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    shortcut: Tensor | None,
    key_bias: Tensor | None,  # not read: it shifts whole rows of scores, of which a softmax sees nothing
    value_bias: Tensor | None,
    scale: float,
    saves: bool,
) -> Results:
    """The output, and what the backward needs: o or the softmax, the norms of rows (tiled), the bits of ReLU's mask."""
    x, shortcut, given, y, kept, norms, bits = _prepare(x, q, k, v, shortcut, saves)
    run = _whole_fwd if given.keeps_rows else _tiled_fwd
    run(given, y, kept, norms, bits, x, value_bias, shortcut, scale)
    return y, kept, norms, bits


def _prepare(
    x: Tensor | None, q: Tensor, k: Tensor | None, v: Tensor | None, shortcut: Tensor | None, saves: bool
) -> tuple[Tensor | None, Tensor | None, Problem, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """x and shortcut as served, the problem, and room for y, what is kept, the norms and the bits."""
    channels_last = None
    if x is not None:
        x, channels_last = served(x)
    if shortcut is not None:
        shortcut, _ = served(shortcut, channels_last)
    given = problem(q, k, v, 0 if x is None else x.shape[1], channels_last)
    batch, length, dtype = q.shape[0], q.shape[1], given.v.dtype
    kept = norms = bits = None
    shape = (batch, length, given.v.shape[2])
    if x is None:
        y = empty_rows(q, shape, dtype, given.channels_last)
    else:
        y = empty_map(x, given.channels_last)
        if torch.promote_types(x.dtype, dtype) != x.dtype:
            y = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format(given.channels_last))
    if saves and given.keeps_rows:
        rows_pitch = attention_rules.pitch(given.k.shape[1])
        kept = torch.empty((batch, length, rows_pitch), dtype=dtype, device=q.device)
    elif saves and not given.counts_again:
        # Without a map the output is what was attended.
        kept = None if x is None else empty_rows(q, shape, dtype, given.channels_last)
        norms = torch.empty((batch, 2, length), dtype=torch.float32, device=q.device)
    if saves and shortcut is not None:
        outer, inner = (length, shape[2]) if given.channels_last else (shape[2], length)
        bits = torch.empty((batch, outer, rules.cdiv(inner, 8)), dtype=torch.uint8, device=q.device)
    return x, shortcut, given, y, kept, norms, bits


def _tiled_fwd(
    given: Problem,
    y: Tensor,
    kept: Tensor | None,
    norms: Tensor | None,
    bits: Tensor | None,
    x: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    scale: float,
) -> None:
    from ..kernels.non_local_fwd import non_local_fwd_kernel

    d, dv, length, _ = given.sizes
    launch.tuned(
        non_local_fwd_kernel,
        lambda config: (y.shape[0] * rules.cdiv(length, config["BLOCK_M"]) * rules.cdiv(dv, config["BLOCK_V"]),),
        given.shape,
        attention_rules.forward(d, dv, given.q.itemsize, chips.chip_of(y.device), given.channels_last),
        y.device,
        y_ptr=y,
        o_ptr=kept,
        norms_ptr=norms,
        bits_ptr=bits,
        q_ptr=given.q,
        k_ptr=given.k,
        v_ptr=given.v,
        x_ptr=x,
        bias_ptr=bias,
        shortcut_ptr=shortcut,
        **scaled(scale),
        HAS_X=x is not None,
        HAS_BIAS=bias is not None,
        HAS_SHORTCUT=shortcut is not None,
        SAVES=norms is not None,
        SAVE_BITS=bits is not None,
        CHANNELS_LAST=given.channels_last,
        **in_units(given, y=map_rows(y), o=kept, q=given.q, k=given.k, v=given.v, x=map_rows(x), s=map_rows(shortcut)),
        **products(given.v),
    )


def _whole_fwd(
    given: Problem,
    y: Tensor,
    kept: Tensor | None,
    norms: Tensor | None,
    bits: Tensor | None,
    x: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    scale: float,
) -> None:
    from ..kernels.non_local_whole import non_local_whole_fwd_kernel

    d, dv, length, source = given.sizes
    launch.tuned(
        non_local_whole_fwd_kernel,
        lambda config: (y.shape[0] * rules.cdiv(length, config["BLOCK_M"]) * rules.cdiv(dv, config["SLICE"]),),
        given.shape,
        attention_rules.whole(d, dv, source, given.q.itemsize, chips.chip_of(y.device), given.channels_last),
        y.device,
        y_ptr=y,
        rows_ptr=kept,
        bits_ptr=bits,
        q_ptr=given.q,
        k_ptr=given.k,
        v_ptr=given.v,
        x_ptr=x,
        bias_ptr=bias,
        shortcut_ptr=shortcut,
        pitch=attention_rules.pitch(source),
        **scaled(scale),
        HAS_X=x is not None,
        HAS_BIAS=bias is not None,
        HAS_SHORTCUT=shortcut is not None,
        SAVES=kept is not None,
        SAVE_BITS=bits is not None,
        CHANNELS_LAST=given.channels_last,
        **in_units(given, y=map_rows(y), q=given.q, k=given.k, v=given.v, x=map_rows(x), s=map_rows(shortcut)),
        **products(given.v),
    )


def _forward_fake(
    x: Tensor | None,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    shortcut: Tensor | None,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
    scale: float,
    saves: bool,
) -> Results:
    *_, y, kept, norms, bits = _prepare(x, q, k, v, shortcut, saves)
    return y, kept, norms, bits


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    kept: Tensor | None,
    norms: Tensor | None,
    bits: Tensor | None,
    scale: float,
    value_width: int,
    channels_last: bool,
    needs_q: bool,
    needs_k: bool,
    needs_v: bool,
) -> Results:
    """The gradient behind ReLU's mask (with bits), and those of q (or of all three in one), k and v.

    None stands for those that are not needed.
    """
    given = problem(q, k, v, value_width, channels_last)
    masked, dq, dk, dv, results = _prepare_bwd(
        grad, q, k, bits, given, value_width, channels_last, needs_q, needs_k, needs_v
    )
    if grad.dim() == 4:
        grad, _ = served(grad, channels_last)
    rows_grad = laid_out(map_rows(grad), channels_last)
    tiled = not given.keeps_rows
    delta = None
    if tiled and (dq is not None or dk is not None):
        delta = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    kept_delta = None if given.counts_again else delta
    if kept_delta is not None or masked is not None:
        _delta(given, kept_delta, masked, rows_grad, kept, bits)
    if masked is not None:
        rows_grad = map_rows(masked)
    if tiled:
        if given.counts_again and (delta is not None or dv is not None):
            norms = torch.empty((q.shape[0], 2, q.shape[1]), dtype=torch.float32, device=q.device)
            _rows_bwd(given, norms, delta, rows_grad, scale)
        _tiled_bwd(given, dq, dk, dv, rows_grad, norms, delta, scale)
    elif kept is not None:
        _whole_bwd(given, dq, dk, dv, rows_grad, kept, scale)
    return results


def _prepare_bwd(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    bits: Tensor | None,
    given: Problem,
    value_width: int,
    channels_last: bool,
    needs_q: bool,
    needs_k: bool,
    needs_v: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Results]:
    """Room for the masked gradient and those of q, k and v, each None where not needed, and the op's results."""
    masked = dq = dk = dv = None
    results: list[Tensor | None]
    if bits is not None:
        masked = torch.empty(
            grad.shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format(channels_last)
        )
    if k is None:
        packed = empty_rows(q, tuple(q.shape), q.dtype, channels_last) if needs_q else None
        if packed is not None:
            dq, dk, dv = packed.split(split_sizes(packed, value_width), dim=2)
        results = [masked, packed, None, None]
    else:
        dq, dk, dv = (
            empty_rows(t, tuple(t.shape), t.dtype, channels_last) if needed else None
            for t, needed in ((given.q, needs_q), (given.k, needs_k), (given.v, needs_v))
        )
        results = [masked, dq, dk, dv]
    return masked, dq, dk, dv, results


def bias_bwd(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of a bias that is added behind the attention, the sum over all positions of a map's ``(C,)``.

    One reduction of the library's, which reads grad again. The kernel of delta could leave sums of its rows, but they
    would be many, and rounded to 16 bits in a launch more; and small maps without a shortcut have no such kernel.
    """
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, dtype)).to(dtype)


def _delta(
    given: Problem,
    delta: Tensor | None,
    masked: Tensor | None,
    grad: Tensor,
    o: Tensor | None,
    bits: Tensor | None,
) -> None:
    """``delta = Σ_c grad · o``, and grad behind ReLU's mask; each where there is room for it."""
    from ..kernels.non_local_bwd import non_local_delta_kernel

    _, dv, length, _ = given.sizes
    o = None if delta is None else o
    arguments = in_units(given, m=map_rows(masked), g=grad, o=o)
    del arguments["width"], arguments["source"]
    launch.tuned(
        non_local_delta_kernel,
        lambda config: (grad.shape[0] * rules.cdiv(length, config["BLOCK_M"]),),
        given.shape,
        attention_rules.delta(length, dv, given.channels_last),
        grad.device,
        delta_ptr=delta,
        masked_ptr=masked,
        grad_ptr=grad,
        o_ptr=o,
        bits_ptr=None if masked is None else bits,
        HAS_DELTA=delta is not None,
        HAS_BITS=masked is not None,
        CHANNELS_LAST=given.channels_last,
        **arguments,
    )


def _rows_bwd(given: Problem, norms: Tensor, delta: Tensor | None, grad: Tensor, scale: float) -> None:
    """The norms of every row, and delta where there is room for it, of the scores as the backward has them."""
    from ..kernels.non_local_rows import non_local_rows_bwd_kernel

    width, value_width, length, _ = given.sizes
    rule = attention_rules.rows_bwd(
        width, value_width, given.q.itemsize, chips.chip_of(grad.device), given.channels_last
    )
    launch.tuned(
        non_local_rows_bwd_kernel,
        lambda config: (grad.shape[0] * rules.cdiv(length, config["BLOCK_M"]),),
        given.shape,
        rule,
        grad.device,
        norms_ptr=norms,
        delta_ptr=delta,
        grad_ptr=grad,
        q_ptr=given.q,
        k_ptr=given.k,
        v_ptr=given.v,
        **scaled(scale),
        HAS_DELTA=delta is not None,
        CHANNELS_LAST=given.channels_last,
        **in_units(given, g=grad, q=given.q, k=given.k, v=given.v),
        **products(given.v),
    )


def _tiled_bwd(
    given: Problem,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    grad: Tensor,
    norms: Tensor | None,
    delta: Tensor | None,
    scale: float,
) -> None:
    from ..kernels.non_local_bwd import non_local_keys_bwd_kernel, non_local_queries_bwd_kernel

    width, value_width, length, source = given.sizes
    chip = chips.chip_of(grad.device)
    shape = (width, value_width, given.q.itemsize, chip, given.channels_last)
    common = {
        "grad_ptr": grad,
        "q_ptr": given.q,
        "k_ptr": given.k,
        "v_ptr": given.v,
        "norms_ptr": norms,
        "delta_ptr": delta,
        **scaled(scale),
        "dscale": scale,
        "CHANNELS_LAST": given.channels_last,
        **products(given.v),
    }
    read = {"g": grad, "q": given.q, "k": given.k, "v": given.v}
    launches = [(dk, dv)] if attention_rules.together(*shape[:4]) else [(None, dv), (dk, None)]
    for own_dk, own_dv in launches:
        if own_dk is None and own_dv is None:
            continue
        rule = attention_rules.keys_bwd(*shape, own_dk is not None, own_dv is not None)
        slices = rules.cdiv(value_width, rule["SLICE_V"])
        if own_dk is not None:
            slices = rules.cdiv(width, rule["SLICE_D"])
        launch.tuned(
            non_local_keys_bwd_kernel,
            _keys_grid(grad.shape[0] * slices, source),
            given.shape,
            rule,
            grad.device,
            dk_ptr=own_dk,
            dv_ptr=own_dv,
            NEEDS_K=own_dk is not None,
            NEEDS_V=own_dv is not None,
            **in_units(given, dk=own_dk, dv=own_dv, **read),
            **common,
        )
    if dq is not None:
        # A tensor core rounds q · k as k · q, all but the last bit of a few in three passes. NumPy does not.
        as_keys = given.counts_again and backend.interpreting()
        launch.tuned(
            non_local_queries_bwd_kernel,
            lambda config: (
                grad.shape[0] * rules.cdiv(width, config["SLICE_D"]) * rules.cdiv(length, config["BLOCK_M"]),
            ),
            given.shape,
            attention_rules.queries_bwd(*shape, as_keys),
            grad.device,
            dq_ptr=dq,
            AS_KEYS=as_keys,
            **in_units(given, dq=dq, **read),
            **common,
        )


def _keys_grid(times: int, source: int) -> launch.Grid:
    """Programs for every block of keys, so many ``times``."""
    return lambda config: (times * rules.cdiv(source, config["BLOCK_N"]),)


def _whole_bwd(
    given: Problem,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    grad: Tensor,
    softmax: Tensor,
    scale: float,
) -> None:
    from ..kernels.non_local_whole import softmax_bwd_kernel

    grad, source = grad.to(softmax.dtype), given.k.shape[1]
    # With ``out=`` autocast, if it is in force around a backward, leaves the factors as they are.
    if dv is not None:
        torch.bmm(softmax[..., :source].transpose(1, 2), grad, out=dv)
    if dq is None and dk is None:
        return
    padded = torch.empty_like(softmax)
    dscore = padded[..., :source]
    torch.bmm(grad, given.v.transpose(1, 2), out=dscore)
    batch, length, pitch = padded.shape
    config = attention_rules.softmax_bwd(pitch)
    launch.start(
        softmax_bwd_kernel,
        (rules.cdiv(batch * length, config["BLOCK_R"]),),
        grad.device,
        grad_ptr=padded,
        rows_ptr=softmax,
        count=batch * length,
        source=source,
        pitch=pitch,
        scale=scale,
        **config,
    )
    if dq is not None:
        torch.bmm(dscore, given.k, out=dq)
    if dk is not None:
        torch.bmm(dscore.transpose(1, 2), given.q, out=dk)


def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    kept: Tensor | None,
    norms: Tensor | None,
    bits: Tensor | None,
    scale: float,
    value_width: int,
    channels_last: bool,
    needs_q: bool,
    needs_k: bool,
    needs_v: bool,
) -> Results:
    given = problem(q, k, v, value_width, channels_last)
    return _prepare_bwd(grad, q, k, bits, given, value_width, channels_last, needs_q, needs_k, needs_v)[-1]


class _NonLocal(Op):
    """Of x the backward wants nothing, and where there is none y is what was attended."""

    def save(self, ctx: Any, arguments: Sequence[Any], y: Tensor | None, kept: Results) -> None:
        x, q, k, v, shortcut, key_bias, value_bias, ctx.scale = arguments
        ctx.op, ctx.constants = self, arguments[self.tensors :]
        attended, norms, bits = kept
        if attended is None and norms is not None:
            attended = y
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (x, shortcut, key_bias, value_bias))
        ctx.key_width = 0 if key_bias is None else key_bias.shape[0]
        if x is None:
            ctx.value_width, ctx.channels_last = v.shape[2], problem(q, k, v, 0, None).channels_last
        else:
            ctx.value_width, ctx.channels_last = x.shape[1], served(x)[1]
        keep(ctx, q, k, v, attended, norms, bits)

    def differentiate(self, ctx: Any, grad: Tensor | None, needs: Sequence[bool]) -> Results:
        needs_x, *needs_rows, needs_shortcut, needs_key_bias, needs_value_bias = needs
        if grad is None or not any(needs):
            return (None,) * 7
        saved = as_kept(ctx)
        dtype_x, dtype_shortcut, dtype_key_bias, dtype_value_bias = ctx.dtypes
        if torch.is_grad_enabled():  # so create_graph is True
            *rows, _, _, bits = saved
            masked = grad if bits is None else torch.where(self.mask(bits, grad, ctx.channels_last), grad, 0.0)
            constants = ctx.scale, ctx.value_width
            grads: Results = gradients_of(self.formula, rows, constants, map_rows(masked), needs_rows)
        else:
            if grad.dim() == 4:
                # In the layout of x here already: the residual's gradient is this one too.
                grad = served(grad, ctx.channels_last)[0]
            masked, grads = grad, [None] * 3
            if any(needs_rows) or dtype_shortcut is not None:
                found = self.backward(grad, *saved, ctx.scale, ctx.value_width, ctx.channels_last, *needs_rows)
                # Without ReLU the residual's gradient is that of the output.
                masked, grads = grad if found[0] is None else found[0], found[1:]
        asked = (each if needed else None for each, needed in zip(grads, needs_rows, strict=True))
        return (
            masked.to(dtype_x) if needs_x else None,
            *asked,
            masked.to(dtype_shortcut) if needs_shortcut else None,
            # Exactly zero, and there: None would be a parameter that nothing uses.
            grad.new_zeros(ctx.key_width, dtype=dtype_key_bias) if needs_key_bias else None,
            bias_bwd(masked, dtype_value_bias) if needs_value_bias else None,
        )


def mask_of(bits: Tensor, grad: Tensor, channels_last: bool) -> Tensor:
    """ReLU's mask, of a map like ``grad``."""
    inner = grad.shape[1] if channels_last else grad.shape[2] * grad.shape[3]
    flags = unpacked(bits)[..., :inner]
    return (flags.transpose(1, 2) if channels_last else flags).reshape(grad.shape)


def _formula(q: Tensor, k: Tensor | None, v: Tensor | None, scale: float, value_width: int) -> Tensor:
    """What is attended, the matrix in memory."""
    if k is None or v is None:
        q, k, v = q.split(split_sizes(q, value_width), dim=2)
    return plain.attend_explicit(q, k, v, scale)


NON_LOCAL = _NonLocal(
    Launcher(
        "non_local(Tensor? x, Tensor q, Tensor? k, Tensor? v, Tensor? shortcut, Tensor? key_bias, Tensor? value_bias,"
        " float scale, bool saves) -> (Tensor, Tensor, Tensor, Tensor)",
        forward,
        _forward_fake,
    ),
    Launcher(
        "non_local_backward(Tensor grad, Tensor q, Tensor? k, Tensor? v, Tensor? kept, Tensor? norms, Tensor? bits,"
        " float scale, int value_width, bool channels_last, bool needs_q, bool needs_k, bool needs_v)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        backward,
        _backward_fake,
    ),
    tensors=7,
    formula=_formula,
    mask=mask_of,
)
