"""The end of a sum that many programs took parts of, as of a parameter's gradient over the batch."""

import triton
import triton.language as tl


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
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    for start in range(0, parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < parts)[:, None] & (k < size)[None, :]
        total += tl.load(part_ptr + p.to(tl.int64)[:, None] * size + k[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + k, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty), mask=k < size)
