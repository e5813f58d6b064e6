"""The end of a sum that many programs took parts of, as of parameters' gradients over the batch.

It has a launch of its own, or programs in one that comes behind the parts anyway.
"""

import triton
import triton.language as tl


@triton.jit
def store_from(out_ptr, values, k, first, size):
    """Write those of ``values`` that are a tensor's of ``size`` elements, which the ``first``-th of them begin."""
    if out_ptr is not None:
        tl.store(out_ptr + k - first, values.to(out_ptr.dtype.element_ty), mask=(k >= first) & (k < first + size))


@triton.jit
def add_up(outs, sizes, part_ptr, parts, block, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr):
    """Σ_p part of a block of elements; ``outs`` are four pointers, one behind the other in ``part_ptr`` (P, K)."""
    out1_ptr, out2_ptr, out3_ptr, out4_ptr = outs
    size1, size2, size3, size4 = sizes
    size = size1 + size2 + size3 + size4
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    for start in range(0, parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < parts)[:, None] & (k < size)[None, :]
        total += tl.load(part_ptr + p.to(tl.int64)[:, None] * size + k[None, :], mask=mask, other=0.0)
    values = tl.sum(total, axis=0)
    store_from(out1_ptr, values, k, 0, size1)
    store_from(out2_ptr, values, k, size1, size2)
    store_from(out3_ptr, values, k, size1 + size2, size3)
    store_from(out4_ptr, values, k, size1 + size2 + size3, size4)


# How many parts there are hangs on the batch, which must not compile the kernel again.
@triton.jit(do_not_specialize=["parts"])
def partial_sums_kernel(
    out_ptr,  # (K,)
    part_ptr,  # (P, K) float32
    parts,
    size,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = Σ_p part, one program per BLOCK_K of it."""
    add_up((out_ptr, None, None, None), (size, 0, 0, 0), part_ptr, parts, tl.program_id(0), BLOCK_P, BLOCK_K)
