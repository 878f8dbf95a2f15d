# mypy: ignore-errors
"""Triton kernels of linear attention: the softmax over tokens is never stored, and k and v are read once."""

import triton
import triton.language as tl

__all__ = ["gradients", "states"]


@triton.jit
def _rows(BASE, rows, stride, n, d, WIDTH: tl.constexpr, other):
    columns = tl.arange(0, WIDTH)
    keep = (rows[:, None] < n) & (columns[None, :] < d)
    return tl.load(BASE + rows[:, None] * stride + columns[None, :], mask=keep, other=other)


@triton.jit
def states(
    K, V, TOP, TOTAL, STATE, k_b, k_h, k_t, v_b, v_h, v_t, heads, n, d, e, per_split,
    KD: tl.constexpr, VE: tl.constexpr, BT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute for one split of the tokens of one head the largest k of each channel, and sums relative to it.

    TOP, TOTAL [B H, splits, d], STATE [B H, splits, d, e], float32.
    """
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k_base, v_base = K + head // heads * k_b + head % heads * k_h, V + head // heads * v_b + head % heads * v_h
    top = tl.full([KD], float("-inf"), tl.float32)
    total = tl.zeros([KD], tl.float32)
    state = tl.zeros([KD, VE], tl.float32)
    end = tl.minimum(n, (split + 1) * per_split)
    for low in range(split * per_split, end, BT):
        rows = low + tl.arange(0, BT)
        k = _rows(k_base, rows, k_t, end, d, KD, float("-inf")).to(tl.float32)
        v = _rows(v_base, rows, v_t, end, e, VE, 0.0).to(DOT)
        new = tl.maximum(top, tl.max(k, 0))
        safe = tl.where(new == float("-inf"), 0.0, new)
        kept, share = tl.exp(top - safe), tl.exp(k - safe[None, :])
        total = total * kept + tl.sum(share, 0)
        state = tl.dot(tl.trans(share.to(DOT)), v, state * kept[:, None], input_precision=PRECISION)
        top = new
    channel, column = tl.arange(0, KD), tl.arange(0, VE)
    at = head * tl.num_programs(1) + split
    tl.store(TOP + at * d + channel, top, mask=channel < d)
    tl.store(TOTAL + at * d + channel, total, mask=channel < d)
    keep = (channel[:, None] < d) & (column[None, :] < e)
    tl.store(STATE + (at * d + channel[:, None]) * e + column[None, :], state, mask=keep)


@triton.jit
def gradients(
    K, V, LSE, DSTATE, DOTS, DK, DV, k_b, k_h, k_t, v_b, v_h, v_t, heads, n, d, e,
    KD: tl.constexpr, VE: tl.constexpr, BT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute DK [B, H, T, d] and DV [B, H, T, e], contiguous, of one tile of tokens of one head.

    LSE [B H, d]: log sum exp of k over the tokens. DSTATE [B H, d, e]: the state's gradient. DOTS [B H, d]: its product
    with the state, summed over e.
    """
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BT + tl.arange(0, BT)
    channel, column = tl.arange(0, KD), tl.arange(0, VE)
    k_base, v_base = K + head // heads * k_b + head % heads * k_h, V + head // heads * v_b + head % heads * v_h
    k = _rows(k_base, rows, k_t, n, d, KD, 0.0).to(tl.float32)
    v = _rows(v_base, rows, v_t, n, e, VE, 0.0).to(DOT)
    dstate = _rows(DSTATE + head * d * e, channel, e, d, e, VE, 0.0).to(DOT)
    lse = tl.load(LSE + head * d + channel, mask=channel < d, other=0.0)
    dots = tl.load(DOTS + head * d + channel, mask=channel < d, other=0.0)
    share = tl.exp(k - lse[None, :])
    dv = tl.dot(share.to(DOT), dstate, input_precision=PRECISION)
    dk = share * (tl.dot(v, tl.trans(dstate), input_precision=PRECISION) - dots[None, :])
    keep = (rows[:, None] < n) & (channel[None, :] < d)
    tl.store(DK + (head * n + rows[:, None]) * d + channel[None, :], dk.to(DK.dtype.element_ty), mask=keep)
    keep = (rows[:, None] < n) & (column[None, :] < e)
    tl.store(DV + (head * n + rows[:, None]) * e + column[None, :], dv.to(DV.dtype.element_ty), mask=keep)
