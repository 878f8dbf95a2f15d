# mypy: ignore-errors
"""Triton kernels of the short convolution: some visits of a scan and some channels to a program, no copy of anything.

Tokens are read where they lie, whatever the order of visits. Sums over tokens are made in two stages without atomics.
"""

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
def _tokens(BASE, ORDER, stride, visit, channel, length, d, ORDERED: tl.constexpr, REVERSE: tl.constexpr):
    """Load the rows [BT, BD] of the tokens that are visited at `visit`; zero for visits out of range."""
    keep = (visit >= 0) & (visit < length)
    token = tl.where(keep, visit, 0)
    if REVERSE:
        token = length - 1 - token
    if ORDERED:
        token = tl.load(ORDER + token)
    at = BASE + token[:, None] * stride + channel[None, :]
    return tl.load(at, mask=keep[:, None] & (channel[None, :] < d), other=0.0).to(tl.float32), token, keep


@triton.jit
def forward(
    U, WEIGHT, BIAS, ORDER, Y, u_b, u_t, length, d,
    TAPS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, ORDERED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Compute Y [B, T, H] contiguous. WEIGHT [H, TAPS], its last tap the token's own. ORDER int64 [T], if ORDERED."""
    row, channel = tl.program_id(2).to(tl.int64), tl.program_id(1) * BD + tl.arange(0, BD)
    visit = tl.program_id(0) * BT + tl.arange(0, BT)
    of_d = channel < d
    y = tl.zeros([BT, BD], tl.float32) + tl.load(BIAS + channel, mask=of_d, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(TAPS):
        u, token, keep = _tokens(
            U + row * u_b, ORDER, u_t, visit - (TAPS - 1 - tap), channel, length, d, ORDERED, REVERSE
        )
        y += u * tl.load(WEIGHT + channel * TAPS + tap, mask=of_d, other=0.0).to(tl.float32)[None, :]
    to = Y + (row * length + token[:, None]) * d + channel[None, :]  # the last tap was the token's own
    tl.store(to, y.to(Y.dtype.element_ty), mask=keep[:, None] & of_d[None, :])


@triton.jit
def backward(
    U, WEIGHT, ORDER, DY, DU, PARTS, u_b, u_t, length, d,
    TAPS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, ORDERED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Compute DU [B, T, H] and PARTS float32 [B, blocks, TAPS + 1, H], sums of these visits for taps and bias."""
    row, channel = tl.program_id(2).to(tl.int64), tl.program_id(1) * BD + tl.arange(0, BD)
    visit = tl.program_id(0) * BT + tl.arange(0, BT)
    of_d = channel < d
    part = PARTS + (row * tl.num_programs(0) + tl.program_id(0)) * (TAPS + 1) * d + channel
    dys = DY + row * length * d
    own, token, keep = _tokens(dys, ORDER, d, visit, channel, length, d, ORDERED, REVERSE)
    du = tl.zeros([BT, BD], tl.float32)
    for tap in tl.static_range(TAPS):
        behind = TAPS - 1 - tap
        u, _, _ = _tokens(U + row * u_b, ORDER, u_t, visit - behind, channel, length, d, ORDERED, REVERSE)
        tl.store(part + tap * d, tl.sum(own * u, 0), mask=of_d)
        dy, _, _ = _tokens(dys, ORDER, d, visit + behind, channel, length, d, ORDERED, REVERSE)
        du += dy * tl.load(WEIGHT + channel * TAPS + tap, mask=of_d, other=0.0).to(tl.float32)[None, :]
    tl.store(part + TAPS * d, tl.sum(own, 0), mask=of_d)
    to = DU + (row * length + token[:, None]) * d + channel[None, :]
    tl.store(to, du.to(DU.dtype.element_ty), mask=keep[:, None] & of_d[None, :])
