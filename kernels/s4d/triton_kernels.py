# mypy: ignore-errors
"""Triton kernels of S4D's Vandermonde product: no power of a mode is ever stored.

Powers exp(l s) turn up to thousands of times around the circle, so that angles are counted in turns and in double
precision, of which GPUs for computing have enough; what is left of the nearest quarter turn is small, and its sine and
cosine are two short polynomials. Complex numbers are pairs of real ones.
"""

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
def _powers(RATE, TURN, line, state, n, position):
    """Return exp(l s_n) as two float32 [BN, BL]. RATE, TURN float64: Re s / log 2 and Im s / 2 pi."""
    keep = state < n
    rate = tl.load(RATE + line * n + state, mask=keep, other=0.0)[:, None]
    turn = tl.load(TURN + line * n + state, mask=keep, other=0.0)[:, None]
    position = position.to(tl.float64)[None, :]
    size = tl.exp2((rate * position).to(tl.float32))
    turns = turn * position
    quarter = tl.floor(4.0 * turns + 0.5)
    angle = (turns - 0.25 * quarter).to(tl.float32) * 6.283185307179586  # within pi / 4, where Taylor's sums are exact
    square = angle * angle
    sine = 1.0 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    sine *= angle
    cosine = -1 / 720 + square * (1 / 40320 - square / 3628800)
    cosine = 1.0 + square * (-0.5 + square * (1 / 24 + square * cosine))
    which = quarter.to(tl.int64) & 3
    swapped, flipped = (which & 1) == 1, (which & 2) == 2
    real, imaginary = tl.where(swapped, -sine, cosine), tl.where(swapped, cosine, sine)
    return tl.where(flipped, -real, real) * size, tl.where(flipped, -imaginary, imaginary) * size


@triton.jit
def forward(
    REAL, IMAGINARY, RATE, TURN, K, heads, n, length, ways, BW: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr
):
    """Compute K [W, H, L], Re sum_n v_n exp(l s_n), for BL positions of one head. REAL, IMAGINARY [W, H, N]: v."""
    head, position = tl.program_id(1).to(tl.int64), tl.program_id(0) * BL + tl.arange(0, BL)
    way = tl.arange(0, BW)
    total = tl.zeros([BW, BL], tl.float32)
    for low in range(0, n, BN):
        state = low + tl.arange(0, BN)
        real, imaginary = _powers(RATE, TURN, head, state, n, position)
        at = (way[:, None] * heads + head) * n + state[None, :]
        keep = (way[:, None] < ways) & (state[None, :] < n)
        v_real = tl.load(REAL + at, mask=keep, other=0.0)[:, :, None]
        v_imaginary = tl.load(IMAGINARY + at, mask=keep, other=0.0)[:, :, None]
        total += tl.sum(v_real * real[None] - v_imaginary * imaginary[None], 1)
    keep = (way[:, None] < ways) & (position[None, :] < length)
    tl.store(K + (way[:, None] * heads + head) * length + position[None, :], total, mask=keep)


@triton.jit
def backward(DK, RATE, TURN, SUMS, heads, n, length, ways, BW: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr):
    """Compute SUMS float32 [4, W, H, N] for BN modes: over l, of dK Re, dK Im, l dK Re and l dK Im of the powers."""
    head, state = tl.program_id(1).to(tl.int64), tl.program_id(0) * BN + tl.arange(0, BN)
    way = tl.arange(0, BW)
    plain_real = tl.zeros([BW, BN], tl.float32)
    plain_imaginary = tl.zeros([BW, BN], tl.float32)
    slope_real = tl.zeros([BW, BN], tl.float32)
    slope_imaginary = tl.zeros([BW, BN], tl.float32)
    for low in range(0, length, BL):
        position = low + tl.arange(0, BL)
        real, imaginary = _powers(RATE, TURN, head, state, n, position)
        keep = (way[:, None] < ways) & (position[None, :] < length)
        dk = tl.load(DK + (way[:, None] * heads + head) * length + position[None, :], mask=keep, other=0.0)[:, None, :]
        of_real, of_imaginary = dk * real[None], dk * imaginary[None]
        far = position.to(tl.float32)[None, None, :]
        plain_real += tl.sum(of_real, 2)
        plain_imaginary += tl.sum(of_imaginary, 2)
        slope_real += tl.sum(of_real * far, 2)
        slope_imaginary += tl.sum(of_imaginary * far, 2)
    to = SUMS + (way[:, None] * heads + head) * n + state[None, :]
    keep = (way[:, None] < ways) & (state[None, :] < n)
    size = ways * heads * n
    tl.store(to, plain_real, mask=keep)
    tl.store(to + size, plain_imaginary, mask=keep)
    tl.store(to + 2 * size, slope_real, mask=keep)
    tl.store(to + 3 * size, slope_imaginary, mask=keep)
