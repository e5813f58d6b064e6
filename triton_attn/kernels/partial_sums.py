"""The second half of a sum that several programs share: what each has left is added in order."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def partial_sums_kernel(
    sum_ptr,  # (K,)
    partial_ptr,  # (count, K) float32
    count,
    size,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Σ over the partial sums, added in float32 and written in the result's dtype."""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    for start in range(0, count, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < count)[:, None] & (k < size)[None, :]
        total += tl.load(partial_ptr + s.to(tl.int64)[:, None] * size + k[None, :], mask=mask, other=0.0)
    tl.store(sum_ptr + k, tl.sum(total, axis=0).to(sum_ptr.dtype.element_ty), mask=k < size)
