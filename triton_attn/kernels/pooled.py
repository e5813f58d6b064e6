"""What was pooled in parts made whole, where no gate network of ours adds the parts up."""

import triton
import triton.language as tl

from .neighbours import block_of_program
from .partials import pooled_parts


@triton.jit
def pooled_kernel(
    mean_ptr,  # (N, C) float32
    peak_ptr,  # (N, C) float32
    winner_ptr,  # (N, C) int32, with SAVE_WINNER
    sum_parts_ptr,  # (N, S, C) float32
    peak_parts_ptr,  # (N, S, C) float32
    winner_parts_ptr,  # (N, S, C) int32
    channels, positions, splits,
    MEAN: tl.constexpr, MAX: tl.constexpr, SAVE_WINNER: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Means and maxima of one image and block of channels."""
    row, c = block_of_program(channels, BLOCK_C)
    pooled_parts(
        (mean_ptr, peak_ptr, winner_ptr), (sum_parts_ptr, peak_parts_ptr, winner_parts_ptr),
        row, c, (c < channels)[None, :], channels, splits, positions, True, MEAN, MAX, SAVE_WINNER, BLOCK_S,
    )  # fmt: skip
