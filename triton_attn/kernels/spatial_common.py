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
def strip_of(block, width, positions, BLOCK_P: tl.constexpr, SPAN: tl.constexpr):
    """The positions that the 7×7 windows of a block of positions reach, (SPAN,), and which of them exist.

    Where the map is narrow they are a piece of it. Where it is wide they are seven, one for each row of the windows:
    then ``pitch``, from a row to the next in the strip, is less than the map's.
    """
    i, pitch = tl.arange(0, SPAN), tl.minimum(width, BLOCK_P + 6)
    q = block * BLOCK_P - 3 + (i // pitch - 3) * width + i % pitch
    return q, (i < 6 * pitch + BLOCK_P + 6) & (q >= 0) & (q < positions)


@triton.jit
def windows_of(
    strip, block, first, width, positions, BLOCK_P: tl.constexpr, PIECE: tl.constexpr, FLIPPED: tl.constexpr
):
    """The 7×7 neighbourhoods in a strip (:func:`strip_of`) of a block's positions from its ``first``, (PIECE, 64).

    They are 0 outside of the map, where the strip is. FLIPPED looks from an input of the convolution to the outputs it
    takes part in.
    """
    ky, kx, exists = taps()
    if FLIPPED:
        ky, kx = 6 - ky, 6 - kx
    i, pitch = first + tl.arange(0, PIECE), tl.minimum(width, BLOCK_P + 6)
    at = i[:, None] + tl.where(exists, ky * pitch + kx, 0)[None, :]
    window = tl.reshape(tl.gather(strip, tl.reshape(at, (PIECE * 64,)), 0), (PIECE, 64))
    p = block * BLOCK_P + i
    # A row above the map or below is outside of the strip's positions already; a column beside it is another row's.
    column = p[:, None] % width + kx[None, :] - 3
    return tl.where((column >= 0) & (column < width) & exists[None, :] & (p < positions)[:, None], window, 0.0)


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
