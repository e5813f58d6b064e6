"""What the kernels of the spatial gate share.

Those that touch the map own a block of an image's positions and a chunk of its channels, which they walk over block by
block. What is pooled over channels comes in parts, one for each chunk, (N, K, …). The 7×7 convolution is between them,
on a small map of its own, in kernels that add the parts up.
"""

import triton
import triton.language as tl


@triton.jit
def taps():
    """The rows and columns of the 7×7 window and which of them exist: 8×8, so that a tile has 64 columns."""
    tap = tl.arange(0, 64)
    ky, kx = tap // 8, tap % 8
    return ky, kx, (ky < 7) & (kx < 7)


@triton.jit
def load_window(ptr, p, height, width, FLIPPED: tl.constexpr):
    """The 7×7 neighbourhood of the positions ``p`` in an image of (HW,) float32, (BLOCK_P, 64): 0 outside of the map.

    It is one load, so that each value is asked for once. FLIPPED looks from an input of the convolution to the outputs
    it takes part in.
    """
    ky, kx, exists = taps()
    dy, dx = ky - 3, kx - 3
    if FLIPPED:
        dy, dx = -dy, -dx
    row, column = p[:, None] // width + dy[None, :], p[:, None] % width + dx[None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    mask = inside & exists[None, :] & (p < height * width)[:, None]
    return tl.load(ptr + row * width + column, mask=mask, other=0.0)


@triton.jit
def load_taps(weight_ptr):
    """The 49 weights of one input channel of the convolution, as (64,) columns of a window."""
    ky, kx, exists = taps()
    return tl.load(weight_ptr + ky * 7 + kx, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def chunk_of_program(pid, channels, positions, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr):
    """The image, the block of positions, the chunk of channels of a program, and how many there are of the last two.

    Chunks of one block are neighbours: they read what belongs to positions together.
    """
    blocks, chunks = tl.cdiv(positions, BLOCK_P), tl.cdiv(channels, CHUNK)
    n = (pid // (blocks * chunks)).to(tl.int64)
    return n, pid // chunks % blocks, pid % chunks, blocks, chunks
