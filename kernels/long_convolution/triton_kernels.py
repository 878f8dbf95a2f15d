# mypy: ignore-errors
"""Triton kernels of long convolution as products with Toeplitz matrices, whose tiles are read from K itself.

Tensors are [H, B, T]: each channel is a product of its own matrix with all samples. K's gradient is the product of dY
and u over all samples, summed along diagonals: a tile of it is sheared by a gather, and each of its two triangles of
diagonals is summed; the few sums of tiles are added afterwards. Nothing is added by atomics.
"""

import triton
import triton.language as tl

__all__ = ["convolve", "correlate"]


@triton.jit
def _samples(BASE, line, sample, position, batch, length, DOT: tl.constexpr):
    keep = (sample[:, None] < batch) & (position[None, :] < length)
    at = BASE + (line * batch + sample[:, None]) * length + position[None, :]
    return tl.load(at, mask=keep, other=0.0).to(DOT)  # [BB, BT]


@triton.jit
def convolve(
    U, K, Y, batch, length, taps,
    BT: tl.constexpr, BB: tl.constexpr, BOTH: tl.constexpr, MIRRORED: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BT positions of BB samples: Y_t = sum over s of K_(t - s) U_s, or U's gradient, K_(s - t), if MIRRORED.

    K [H, taps]: of a negative difference the number that far from the end if BOTH, else nothing.
    """
    line = tl.program_id(2).to(tl.int64)
    block, blocks = tl.program_id(0), tl.num_programs(0)
    position, sample = block * BT + tl.arange(0, BT), tl.program_id(1) * BB + tl.arange(0, BB)
    first, last = 0, blocks
    if not BOTH:
        if MIRRORED:
            first = block
        else:
            last = block + 1
    total = tl.zeros([BT, BB], tl.float32)
    for other in range(first, last):
        source = other * BT + tl.arange(0, BT)
        by = position[:, None] - source[None, :]
        if MIRRORED:
            by = -by
        keep = (position[:, None] < length) & (source[None, :] < length)
        if BOTH:
            index = tl.where(by < 0, taps + by, by)
        else:
            index = by
            keep = keep & (by >= 0)
        matrix = tl.load(K + line * taps + index, mask=keep, other=0.0).to(DOT)  # [BT, BT]
        u = _samples(U, line, sample, source, batch, length, DOT)
        total = tl.dot(matrix, tl.trans(u), total, input_precision=PRECISION)
    keep = (sample[:, None] < batch) & (position[None, :] < length)
    to = Y + (line * batch + sample[:, None]) * length + position[None, :]
    tl.store(to, tl.trans(total).to(Y.dtype.element_ty), mask=keep)


@triton.jit
def correlate(
    U, DY, PARTS, batch, length, blocks,
    BT: tl.constexpr, BB: tl.constexpr, BOTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum over all pairs of blocks that are `apart` blocks apart: PARTS float32 [H, distances, 2, BT].

    Of differences apart BT + r the sum comes first at r, and of those apart BT + r - BT second. Distances are 0 ...
    blocks - 1, or from 1 - blocks on if BOTH.
    """
    line, apart = tl.program_id(1).to(tl.int64), tl.program_id(0)
    if BOTH:
        apart += 1 - blocks
    row, column = tl.arange(0, BT)[:, None], tl.arange(0, BT)[None, :]
    product = tl.zeros([BT, BT], tl.float32)
    for block in range(tl.maximum(apart, 0), tl.minimum(blocks, blocks + apart)):
        for low in range(0, batch, BB):
            sample = low + tl.arange(0, BB)
            dy = _samples(DY, line, sample, block * BT + tl.arange(0, BT), batch, length, DOT)
            u = _samples(U, line, sample, (block - apart) * BT + tl.arange(0, BT), batch, length, DOT)
            product = tl.dot(tl.trans(dy), u, product, input_precision=PRECISION)
    sheared = tl.gather(product, (row - column) & (BT - 1), 1)  # [i, r]: the product at i and i - r, round the corner
    to = PARTS + (line * tl.num_programs(0) + tl.program_id(0)) * 2 * BT + tl.arange(0, BT)
    tl.store(to, tl.sum(tl.where(row >= column, sheared, 0.0), 0))
    tl.store(to + BT, tl.sum(tl.where(row < column, sheared, 0.0), 0))
