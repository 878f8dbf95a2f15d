# mypy: ignore-errors
"""Triton kernels of Mamba-2's scan as masked attention: tiles of weights that are never stored, no atomics.

y_i = sum over j <= i of w_ij x_j with w_ij = (C_i . B_j) exp(s_i - s_j) delta_j, s the running sum of delta A. Each s
comes as two float32, HIGH and LOW, whose sum has some 48 bits: differences of near sums keep their digits.

With m_ij = w_ij (dy_i . x_j), the gradient of s_t - s_(t-1) is the sum of m over all pairs i >= t > j. It is made of
sums of m alone, without a difference: of rows over the blocks before their own (PAST), of columns over those after
(NEXT), and of what is left of a block of its own (WITHIN).
"""

import triton
import triton.language as tl

__all__ = ["forward", "gradients_in", "gradients_out", "triangles"]


@triton.jit
def _rows(BASE, rows, stride, length, width, WIDTH: tl.constexpr, DOT: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    keep = (rows[:, None] < length) & (columns[None, :] < width)
    return tl.load(BASE + rows[:, None] * stride + columns[None, :], mask=keep, other=0.0).to(DOT)


@triton.jit
def _numbers(BASE, rows, stride, length):
    return tl.load(BASE + rows * stride, mask=rows < length, other=0.0).to(tl.float32)


@triton.jit
def _decay(HIGH, LOW, later, earlier, length):
    """Return exp(s_i - s_j) where i >= j, else 0: it would overflow. later, earlier: i and j, one of them [., 1]."""
    high = _numbers(HIGH, later, 1, length) - _numbers(HIGH, earlier, 1, length)
    low = _numbers(LOW, later, 1, length) - _numbers(LOW, earlier, 1, length)
    return tl.exp(tl.where(later >= earlier, high + low, float("-inf")))


@triton.jit
def forward(
    X, DELTA, B, C, HIGH, LOW, Y, x_b, x_t, x_h, delta_b, delta_t, delta_h, b_b, b_t, b_g, c_b, c_t, c_g,
    length, heads, share, n, p,
    BT: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BT tokens of one head: Y [b, T, H, P]. HIGH, LOW [b, H, T]. share: heads to a group of B and C."""
    row, head = tl.program_id(1).to(tl.int64) // heads, tl.program_id(1).to(tl.int64) % heads
    later = tl.program_id(0) * BT + tl.arange(0, BT)
    sums, group = (row * heads + head) * length, head // share
    c = _rows(C + row * c_b + group * c_g, later, c_t, length, n, BN, DOT)
    y = tl.zeros([BT, BP], tl.float32)
    for block in range(tl.program_id(0) + 1):
        earlier = block * BT + tl.arange(0, BT)
        b = _rows(B + row * b_b + group * b_g, earlier, b_t, length, n, BN, DOT)
        x = _rows(X + row * x_b + head * x_h, earlier, x_t, length, p, BP, DOT)
        delta = _numbers(DELTA + row * delta_b + head * delta_h, earlier, delta_t, length)
        weight = tl.dot(c, tl.trans(b), input_precision=PRECISION)
        weight *= _decay(HIGH + sums, LOW + sums, later[:, None], earlier[None, :], length) * delta[None, :]
        y = tl.dot(weight.to(DOT), x, y, input_precision=PRECISION)
    column = tl.arange(0, BP)
    keep = (later[:, None] < length) & (column[None, :] < p)
    to = Y + ((row * length + later[:, None]) * heads + head) * p + column[None, :]
    tl.store(to, y.to(Y.dtype.element_ty), mask=keep)


@triton.jit
def gradients_out(
    X, DELTA, B, C, HIGH, LOW, DY, DC, PAST, x_b, x_t, x_h, delta_b, delta_t, delta_h, b_b, b_t, b_g, c_b, c_t, c_g,
    length, heads, share, n, p,
    BT: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute DC float32 [b, H, T, N], of this head's share of C, for BT tokens as those that look back.

    PAST float32 [b, H, blocks, T]: of block q, for each token i of it and those after, the sum of m_ij over the tokens
    j of blocks before q; not written where i lies before.
    """
    row, head = tl.program_id(1).to(tl.int64) // heads, tl.program_id(1).to(tl.int64) % heads
    later = tl.program_id(0) * BT + tl.arange(0, BT)
    line, group = row * heads + head, head // share
    sums = line * length
    c = _rows(C + row * c_b + group * c_g, later, c_t, length, n, BN, DOT)
    dy = _rows(DY + row * length * heads * p + head * p, later, heads * p, length, p, BP, DOT)
    dc = tl.zeros([BT, BN], tl.float32)
    past = tl.zeros([BT], tl.float32)
    for block in range(tl.program_id(0) + 1):
        earlier = block * BT + tl.arange(0, BT)
        b = _rows(B + row * b_b + group * b_g, earlier, b_t, length, n, BN, DOT)
        x = _rows(X + row * x_b + head * x_h, earlier, x_t, length, p, BP, DOT)
        delta = _numbers(DELTA + row * delta_b + head * delta_h, earlier, delta_t, length)
        tl.store(PAST + (line * tl.num_programs(0) + block) * length + later, past, mask=later < length)
        of_product = tl.dot(dy, tl.trans(x), input_precision=PRECISION)
        of_product *= _decay(HIGH + sums, LOW + sums, later[:, None], earlier[None, :], length) * delta[None, :]
        past += tl.sum(of_product * tl.dot(c, tl.trans(b), input_precision=PRECISION), 1)
        dc = tl.dot(of_product.to(DOT), b, dc, input_precision=PRECISION)
    column = tl.arange(0, BN)
    keep = (later[:, None] < length) & (column[None, :] < n)
    tl.store(DC + (line * length + later[:, None]) * n + column[None, :], dc, mask=keep)


@triton.jit
def gradients_in(
    X, DELTA, B, C, HIGH, LOW, DY, DX, DDELTA, DB, NEXT,
    x_b, x_t, x_h, delta_b, delta_t, delta_h, b_b, b_t, b_g, c_b, c_t, c_g, length, heads, share, n, p,
    BT: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute DX [b, T, H, P] and DB float32 [b, H, T, N] for BT tokens as those that are looked back at.

    DDELTA float32 [b, H, T]: what delta's own factor gets. NEXT float32 [b, H, T], at j: the sum of m_ij' over the j'
    up to j in this block and the i of all blocks after it.
    """
    row, head = tl.program_id(1).to(tl.int64) // heads, tl.program_id(1).to(tl.int64) % heads
    block = tl.program_id(0)
    earlier = block * BT + tl.arange(0, BT)
    line, group = row * heads + head, head // share
    b = _rows(B + row * b_b + group * b_g, earlier, b_t, length, n, BN, DOT)
    x = _rows(X + row * x_b + head * x_h, earlier, x_t, length, p, BP, DOT)
    delta = _numbers(DELTA + row * delta_b + head * delta_h, earlier, delta_t, length)
    driven = tl.zeros([BT, BP], tl.float32)  # the gradient of delta_j x_j
    db = tl.zeros([BT, BN], tl.float32)
    own_sum = tl.zeros([BT], tl.float32)
    for other in range(block, tl.num_programs(0)):
        later = other * BT + tl.arange(0, BT)
        c = _rows(C + row * c_b + group * c_g, later, c_t, length, n, BN, DOT)
        dy = _rows(DY + row * length * heads * p + head * p, later, heads * p, length, p, BP, DOT)
        decay = _decay(HIGH + line * length, LOW + line * length, later[None, :], earlier[:, None], length)
        product = tl.dot(b, tl.trans(c), input_precision=PRECISION)  # [j, i]
        of_product = tl.dot(x, tl.trans(dy), input_precision=PRECISION) * decay * delta[:, None]
        own_sum += tl.where(other > block, tl.sum(of_product * product, 1), 0.0)
        driven = tl.dot((product * decay).to(DOT), dy, driven, input_precision=PRECISION)
        db = tl.dot(of_product.to(DOT), c, db, input_precision=PRECISION)
    keep = earlier < length
    tl.store(DDELTA + line * length + earlier, tl.sum(driven * x.to(tl.float32), 1), mask=keep)
    tl.store(NEXT + line * length + earlier, tl.cumsum(own_sum, 0), mask=keep)
    state, channel = tl.arange(0, BN), tl.arange(0, BP)
    to = DB + (line * length + earlier[:, None]) * n + state[None, :]
    tl.store(to, db, mask=keep[:, None] & (state[None, :] < n))
    to = DX + ((row * length + earlier[:, None]) * heads + head) * p + channel[None, :]
    tl.store(to, (driven * delta[:, None]).to(DX.dtype.element_ty), mask=keep[:, None] & (channel[None, :] < p))


@triton.jit
def triangles(
    X, DELTA, B, C, HIGH, LOW, DY, WITHIN, x_b, x_t, x_h, delta_b, delta_t, delta_h, b_b, b_t, b_g, c_b, c_t, c_g,
    length, heads, share, n, p,
    BT: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute WITHIN float32 [b, H, T], at j: the sum of m over the pairs i > j >= j' of this block of BT tokens."""
    row, head = tl.program_id(1).to(tl.int64) // heads, tl.program_id(1).to(tl.int64) % heads
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    line, group = row * heads + head, head // share
    b = _rows(B + row * b_b + group * b_g, token, b_t, length, n, BN, DOT)
    c = _rows(C + row * c_b + group * c_g, token, c_t, length, n, BN, DOT)
    x = _rows(X + row * x_b + head * x_h, token, x_t, length, p, BP, DOT)
    dy = _rows(DY + row * length * heads * p + head * p, token, heads * p, length, p, BP, DOT)
    delta = _numbers(DELTA + row * delta_b + head * delta_h, token, delta_t, length)
    m = tl.dot(c, tl.trans(b), input_precision=PRECISION) * tl.dot(dy, tl.trans(x), input_precision=PRECISION)
    m *= _decay(HIGH + line * length, LOW + line * length, token[:, None], token[None, :], length) * delta[None, :]
    within = tl.sum(tl.where(token[:, None] > token[None, :], tl.cumsum(m, 1), 0.0), 0)
    tl.store(WITHIN + line * length + token, within, mask=token < length)
