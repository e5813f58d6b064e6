"""What the kernels share.

A map is seen as (N, outer, inner) with inner contiguous in memory: outer = channels and inner = positions where it is
contiguous, outer = positions and inner = channels where it is channels_last. So one kernel serves both layouts, and
its tiles are (BLOCK_OUTER, BLOCK_INNER) with the fast axis last.

Strides and row lengths of maps come divided by UNIT, and are multiplied by it first of all: so the compiler knows what
they are multiples of.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(ptr, n, outer, inner, mask, stride_n, stride_outer):
    """A tile of a map, in float32 (the interpreter cannot compute in bfloat16, and sums want float32 anyway)."""
    # Offsets in int64: a map may hold more than 2³¹ elements.
    offsets = n.to(tl.int64) * stride_n + outer.to(tl.int64)[:, None] * stride_outer + inner[None, :]
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(ptr, values, n, outer, inner, mask, stride_n, stride_outer):
    """Write a float32 tile in the map's dtype."""
    offsets = n.to(tl.int64) * stride_n + outer.to(tl.int64)[:, None] * stride_outer + inner[None, :]
    tl.store(ptr + offsets, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def tile_at(
    p, last_p, first_c, channels, positions, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """A tile at positions from ``p``: its rows, first column, columns and mask, and the map's rows and columns."""
    if CHANNELS_LAST:
        outer, inner_start, inner = p + tl.arange(0, BLOCK_P), first_c, first_c + tl.arange(0, BLOCK_C)
        mask = (outer < last_p)[:, None] & (inner < channels)[None, :]
        outer_size, inner_size = positions, channels
    else:
        outer, inner_start, inner = first_c + tl.arange(0, BLOCK_C), p, p + tl.arange(0, BLOCK_P)
        mask = (outer < channels)[:, None] & (inner < last_p)[None, :]
        outer_size, inner_size = channels, positions
    return outer, inner_start, inner, mask, outer_size, inner_size


@triton.jit
def bit_offsets(n, outer, inner_start, outer_size, inner_size, BLOCK_INNER: tl.constexpr):
    """Where a tile's bits lie, (BLOCK_OUTER, BLOCK_INNER // 8), and which of them exist.

    Bits are kept as (N, outer, ceil(inner / 8)) bytes, whatever the tiles are: bit i of byte b is element 8b + i.
    """
    row_bytes = tl.cdiv(inner_size, 8)
    byte = inner_start // 8 + tl.arange(0, BLOCK_INNER // 8)
    row = n.to(tl.int64) * outer_size + outer.to(tl.int64)
    return row[:, None] * row_bytes + byte[None, :], (outer < outer_size)[:, None] & (byte < row_bytes)[None, :]


@triton.jit
def store_bits(
    ptr, flags, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr
):
    """Pack a boolean tile eight to a byte and write it."""
    offsets, mask = bit_offsets(n, outer, inner_start, outer_size, inner_size, BLOCK_INNER)
    grouped = tl.reshape(flags.to(tl.int32), (BLOCK_OUTER, BLOCK_INNER // 8, 8))
    packed = tl.sum(grouped << tl.arange(0, 8)[None, None, :], axis=2)
    tl.store(ptr + offsets, packed.to(tl.uint8), mask=mask)


@triton.jit
def load_bits(ptr, n, outer, inner_start, outer_size, inner_size, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr):
    """The boolean tile that ``store_bits`` wrote."""
    offsets, mask = bit_offsets(n, outer, inner_start, outer_size, inner_size, BLOCK_INNER)
    packed = tl.load(ptr + offsets, mask=mask, other=0).to(tl.int32)
    bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (BLOCK_OUTER, BLOCK_INNER)) != 0


@triton.jit
def load_grad(ptr, bits_ptr, n, tile, stride_n, stride_outer, HAS_BITS: tl.constexpr):
    """A tile (``tile_at``) of y's gradient, behind ReLU's mask where there is one."""
    outer, inner_start, inner, mask, outer_size, inner_size = tile
    grad = load_tile(ptr, n, outer, inner, mask, stride_n, stride_outer)
    if HAS_BITS:
        kept = load_bits(bits_ptr, n, outer, inner_start, outer_size, inner_size, mask.shape[0], mask.shape[1])
        grad = tl.where(kept, grad, 0.0)
    return grad


@triton.jit
def finish_tile(
    y_ptr,
    bits_ptr,
    shortcut_ptr,
    y,
    n,
    tile,
    stride_yn,
    stride_yo,
    stride_sn,
    stride_so,
    HAS_SHORTCUT: tl.constexpr,
    SAVE_BITS: tl.constexpr,
):
    """Write a tile (``tile_at``) of y, or with a shortcut of relu(y + shortcut), whose mask is kept as bits."""
    outer, inner_start, inner, mask, outer_size, inner_size = tile
    if HAS_SHORTCUT:
        y = relu(y + load_tile(shortcut_ptr, n, outer, inner, mask, stride_sn, stride_so))
        if SAVE_BITS:
            kept = passes_gradient(y)
            store_bits(bits_ptr, kept, n, outer, inner_start, outer_size, inner_size, mask.shape[0], mask.shape[1])
    store_tile(y_ptr, y, n, outer, inner, mask, stride_yn, stride_yo)


@triton.jit
def more_moments(mean, square, values, mask, seen):
    """Of each element of a tile mean and squared distances from it, with another tile's, which is the ``seen``-th."""
    off = values - mean
    next_mean = mean + off / seen
    # The distance from the next mean is (seen - 1) / seen of off.
    square += tl.where(mask, off * off * ((seen - 1.0) / seen), 0.0)
    return tl.where(mask, next_mean, mean), square


@triton.jit
def higher(a, b):
    """The larger of two, NaN where one is, as PyTorch has it."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def in_order(bits):
    """A float's bits as a number whose order is the floats', or such a number's as a float's: it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def max_or_nan(values, AXIS: tl.constexpr):
    """The maximum of float32 values, NaN where one is: ``tl.max`` passes over them. Threads meet once."""
    bits = tl.where(values == values, in_order(values.to(tl.int32, bitcast=True)), 0x7FFFFFFF)
    return in_order(tl.max(bits, axis=AXIS)).to(tl.float32, bitcast=True)


@triton.jit
def over_channels(values, CHANNELS_LAST: tl.constexpr):
    """A value per position, spread over a tile's channels."""
    return values[:, None] if CHANNELS_LAST else values[None, :]


@triton.jit
def over_positions(values, CHANNELS_LAST: tl.constexpr):
    """A value per channel, spread over a tile's positions."""
    return values[None, :] if CHANNELS_LAST else values[:, None]


@triton.jit
def relu(x):
    # Not tl.maximum: NaN must stay NaN, as in PyTorch.
    return tl.where(x <= 0.0, 0.0, x)


@triton.jit
def passes_gradient(y):
    """Whether ReLU, which returned y, passes a gradient on. Not (y > 0): PyTorch's does where its result is NaN."""
    return (y <= 0.0) == 0


@triton.jit
def activate(logits, ACTIVATION: tl.constexpr):
    """A gate's last step, by its name in the reference's ``GATES``."""
    gate = logits
    if ACTIVATION == "one_plus":
        gate = 1.0 + logits
    if ACTIVATION == "sigmoid":
        gate = tl.sigmoid(logits)
    if ACTIVATION == "double_sigmoid":
        gate = 2.0 * tl.sigmoid(logits)
    if ACTIVATION == "hard_sigmoid":
        # Comparisons, not tl.minimum: NaN must stay NaN.
        gate = tl.where(logits <= -3.0, 0.0, tl.where(logits >= 3.0, 1.0, logits / 6.0 + 0.5))
    if ACTIVATION == "double_hard_sigmoid":
        gate = tl.where(logits <= -3.0, 0.0, tl.where(logits >= 3.0, 2.0, logits / 3.0 + 1.0))
    return gate


@triton.jit
def slope(gate, ACTIVATION: tl.constexpr):
    """The derivative of :func:`activate`, from what it returned."""
    derivative = tl.full(gate.shape, 1.0, tl.float32)
    if ACTIVATION == "sigmoid":
        derivative = gate * (1.0 - gate)
    if ACTIVATION == "double_sigmoid":
        derivative = gate * (1.0 - 0.5 * gate)
    if ACTIVATION == "hard_sigmoid":
        derivative = tl.where((gate > 0.0) & (gate < 1.0), 1.0 / 6.0, 0.0)
    if ACTIVATION == "double_hard_sigmoid":
        derivative = tl.where((gate > 0.0) & (gate < 2.0), 1.0 / 3.0, 0.0)
    return derivative


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def activate_hidden(unit, HIDDEN: tl.constexpr):
    """A hidden unit's activation, by PyTorch's names; 0 at 0, all of them."""
    value = unit
    if HIDDEN == "relu":
        value = relu(unit)
    if HIDDEN == "leaky_relu":
        value = tl.where(unit <= 0.0, 0.01 * unit, unit)
    if HIDDEN == "silu":
        value = unit * tl.sigmoid(unit)
    if HIDDEN == "hardswish":
        value = unit * activate(unit, "hard_sigmoid")
    if HIDDEN == "gelu":
        value = 0.5 * unit * (1.0 + tl.erf(unit * 0.7071067811865476))
    if HIDDEN == "gelu_tanh":
        value = 0.5 * unit * (1.0 + tanh(0.7978845608028654 * (unit + 0.044715 * unit * unit * unit)))
    return value


@triton.jit
def activate_hidden_bwd(grad, unit, HIDDEN: tl.constexpr):
    """The gradient of the unit, from that of its activation."""
    dunit = grad
    if HIDDEN == "relu":
        # Not (unit > 0): PyTorch's ReLU passes the gradient where its result is NaN.
        dunit = tl.where(unit <= 0.0, 0.0, grad)
    if HIDDEN == "leaky_relu":
        dunit = tl.where(unit > 0.0, grad, 0.01 * grad)
    if HIDDEN == "silu":
        gate = tl.sigmoid(unit)
        dunit = grad * gate * (1.0 + unit * (1.0 - gate))
    if HIDDEN == "hardswish":
        dunit = tl.where(unit <= -3.0, 0.0, tl.where(unit >= 3.0, grad, grad * (unit / 3.0 + 0.5)))
    if HIDDEN == "gelu":
        normal = 0.3989422804014327 * tl.exp(-0.5 * unit * unit)
        dunit = grad * (0.5 * (1.0 + tl.erf(unit * 0.7071067811865476)) + unit * normal)
    if HIDDEN == "gelu_tanh":
        square = unit * unit
        bent = tanh(0.7978845608028654 * (unit + 0.044715 * square * unit))
        inner = 0.7978845608028654 * (1.0 + 0.134145 * square)
        dunit = grad * (0.5 * (1.0 + bent) + 0.5 * unit * (1.0 - bent * bent) * inner)
    return dunit
