# mypy: ignore-errors
"""Triton kernels of attention over packed q, k and v [B, N, 3, H, d], under any rule that has codes.

A head dim that is no power of two is cut into two pieces, such as 72 = 64 + 8: the products run over 64 and 16 columns
instead of over 128. The softmax is online and in base 2. Which tiles of keys a tile of queries visits comes as a list,
those that are seen whole first: only the others are masked. No atomics: results are the same, bit for bit, every time.
(Dao et al. 2022, FlashAttention, arXiv 2205.14135; the two backward loops as in FlashAttention-2, arXiv 2307.08691.)
"""

# Names of shapes and constants are upper case, as in all kernels.
import triton
import triton.language as tl

__all__ = ["backward_dkv", "backward_dq", "forward", "row_dots"]


@triton.jit
def _piece(base, rows, stride, n, D: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr, DOT: tl.constexpr):
    """Columns START ... of some rows of a matrix [n, D], zero outside of it."""
    columns = START + tl.arange(0, WIDTH)
    keep = (rows[:, None] < n) & (columns[None, :] < D)
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=keep, other=0.0).to(DOT)


@triton.jit
def _put(base, rows, stride, n, value, D: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    columns = START + tl.arange(0, WIDTH)
    keep = (rows[:, None] < n) & (columns[None, :] < D)
    tl.store(base + rows[:, None] * stride + columns[None, :], value.to(base.dtype.element_ty), mask=keep)


@triton.jit
def _seen(rows, columns, n, LEVEL, REACH, OWN, RULED: tl.constexpr):
    """Which queries `rows` see which keys `columns`; no one sees, or is, a place beyond n."""
    seen = (rows[:, None] < n) & (columns[None, :] < n)
    if RULED:
        level = tl.load(LEVEL + columns, mask=columns < n, other=0)
        reach = tl.load(REACH + rows, mask=rows < n, other=0)
        own_key = tl.load(OWN + columns, mask=columns < n, other=-1)
        own_query = tl.load(OWN + rows, mask=rows < n, other=-1)
        same = (own_query[:, None] == own_key[None, :]) & (own_query[:, None] >= 0)
        seen = seen & ((level[None, :] <= reach[:, None]) | same)
    return seen


@triton.jit
def _softmax_step(scores, top, total):
    """The new largest score, what the past is worth after it, and this tile's weights; scores in base 2."""
    new = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    kept = tl.exp2(top - safe)
    weights = tl.exp2(scores - safe[:, None])
    return new, kept, weights, total * kept + tl.sum(weights, 1)


@triton.jit
def forward(
    QKV, OUT, LSE, LEVEL, REACH, OWN, TILES, WHOLE, SOME, stride_b, stride_n, stride_s, stride_h,
    n, heads, n_tiles, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    RULED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: OUT [B, N, H, D] and LSE [B, H, N], the base-2 logarithm of the sum."""
    tile, b, h = tl.program_id(0), tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    q_base = QKV + b * stride_b + h * stride_h
    k_base, v_base = q_base + stride_s, q_base + 2 * stride_s
    rows = tile * BM + tl.arange(0, BM)
    q0 = _piece(q_base, rows, stride_n, n, D, 0, D0, DOT)
    acc0 = tl.zeros([BM, D0], tl.float32)
    if D1 > 0:
        q1 = _piece(q_base, rows, stride_n, n, D, D0, D1, DOT)
        acc1 = tl.zeros([BM, D1], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    whole = tl.load(WHOLE + tile)
    visited = whole + tl.load(SOME + tile)
    for j in range(visited):
        columns = tl.load(TILES + tile * n_tiles + j) * BN + tl.arange(0, BN)
        scores = tl.dot(q0, tl.trans(_piece(k_base, columns, stride_n, n, D, 0, D0, DOT)), input_precision=PRECISION)
        if D1 > 0:
            k1 = _piece(k_base, columns, stride_n, n, D, D0, D1, DOT)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
        scores *= scale * 1.4426950408889634
        if j >= whole:
            scores = tl.where(_seen(rows, columns, n, LEVEL, REACH, OWN, RULED), scores, float("-inf"))
        top, kept, weights, total = _softmax_step(scores, top, total)
        weights = weights.to(DOT)
        v0 = _piece(v_base, columns, stride_n, n, D, 0, D0, DOT)
        acc0 = tl.dot(weights, v0, acc0 * kept[:, None], input_precision=PRECISION)
        if D1 > 0:
            v1 = _piece(v_base, columns, stride_n, n, D, D0, D1, DOT)
            acc1 = tl.dot(weights, v1, acc1 * kept[:, None], input_precision=PRECISION)
    total = tl.where(total == 0.0, 1.0, total)
    out = OUT + b * n * heads * D + h * D
    _put(out, rows, heads * D, n, acc0 / total[:, None], D, 0, D0)
    if D1 > 0:
        _put(out, rows, heads * D, n, acc1 / total[:, None], D, D0, D1)
    top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(LSE + (b * heads + h) * n + rows, top + tl.log2(total), mask=rows < n)


@triton.jit
def row_dots(
    OUT, DOUT, DOTS, stride_b, stride_n, stride_h, n, heads, D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr
):
    """DOTS [B, H, N]: the product of each row of OUT (contiguous) with its gradient."""
    b, h = tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    out = _piece(OUT + b * n * heads * D + h * D, rows, heads * D, n, D, 0, WIDTH, tl.float32)
    dout = _piece(DOUT + b * stride_b + h * stride_h, rows, stride_n, n, D, 0, WIDTH, tl.float32)
    tl.store(DOTS + (b * heads + h) * n + rows, tl.sum(out * dout, 1), mask=rows < n)


@triton.jit
def _weights(
    q0, q1, k0, k1, do0, do1, v0, v1, rows, columns, LSE, DOTS, n, scale, LEVEL, REACH, OWN, masked,
    D1: tl.constexpr, RULED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax's weights [BM, BN] of a tile, and the gradient of its scores before their scale."""
    scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    dweights = tl.dot(do0, tl.trans(v0), input_precision=PRECISION)
    if D1 > 0:
        scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
        dweights = tl.dot(do1, tl.trans(v1), dweights, input_precision=PRECISION)
    lse = tl.load(LSE + rows, mask=rows < n, other=0.0)
    dots = tl.load(DOTS + rows, mask=rows < n, other=0.0)
    weights = tl.exp2(scores * (scale * 1.4426950408889634) - lse[:, None])
    if masked:
        weights = tl.where(_seen(rows, columns, n, LEVEL, REACH, OWN, RULED), weights, 0.0)
    return weights, weights * (dweights - dots[:, None])


@triton.jit
def backward_dkv(
    QKV, DOUT, LSE, DOTS, DQKV, LEVEL, REACH, OWN, TILES, WHOLE, SOME, stride_b, stride_n, stride_s, stride_h,
    grad_b, grad_n, grad_h, n, heads, n_tiles, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    RULED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one head: their and their values' gradients, into DQKV (contiguous, packed as QKV is)."""
    tile, b, h = tl.program_id(0), tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    q_base = QKV + b * stride_b + h * stride_h
    do_base = DOUT + b * grad_b + h * grad_h
    columns = tile * BN + tl.arange(0, BN)
    k0 = _piece(q_base + stride_s, columns, stride_n, n, D, 0, D0, DOT)
    v0 = _piece(q_base + 2 * stride_s, columns, stride_n, n, D, 0, D0, DOT)
    dk0, dv0 = tl.zeros([BN, D0], tl.float32), tl.zeros([BN, D0], tl.float32)
    k1, v1 = k0, v0
    if D1 > 0:
        k1 = _piece(q_base + stride_s, columns, stride_n, n, D, D0, D1, DOT)
        v1 = _piece(q_base + 2 * stride_s, columns, stride_n, n, D, D0, D1, DOT)
        dk1, dv1 = tl.zeros([BN, D1], tl.float32), tl.zeros([BN, D1], tl.float32)
    whole = tl.load(WHOLE + tile)
    visited = whole + tl.load(SOME + tile)
    for j in range(visited):
        rows = tl.load(TILES + tile * n_tiles + j) * BM + tl.arange(0, BM)
        q0 = _piece(q_base, rows, stride_n, n, D, 0, D0, DOT)
        do0 = _piece(do_base, rows, grad_n, n, D, 0, D0, DOT)
        q1, do1 = q0, do0
        if D1 > 0:
            q1 = _piece(q_base, rows, stride_n, n, D, D0, D1, DOT)
            do1 = _piece(do_base, rows, grad_n, n, D, D0, D1, DOT)
        weights, dscores = _weights(
            q0, q1, k0, k1, do0, do1, v0, v1, rows, columns, LSE + (b * heads + h) * n, DOTS + (b * heads + h) * n,
            n, scale, LEVEL, REACH, OWN, j >= whole, D1, RULED, PRECISION,
        )  # fmt: skip
        weights, dscores = tl.trans(weights.to(DOT)), tl.trans(dscores.to(DOT))
        dv0 = tl.dot(weights, do0, dv0, input_precision=PRECISION)
        dk0 = tl.dot(dscores, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dv1 = tl.dot(weights, do1, dv1, input_precision=PRECISION)
            dk1 = tl.dot(dscores, q1, dk1, input_precision=PRECISION)
    dk = DQKV + (b * n * 3 + 1) * heads * D + h * D
    dv = dk + heads * D
    _put(dk, columns, 3 * heads * D, n, dk0 * scale, D, 0, D0)
    _put(dv, columns, 3 * heads * D, n, dv0, D, 0, D0)
    if D1 > 0:
        _put(dk, columns, 3 * heads * D, n, dk1 * scale, D, D0, D1)
        _put(dv, columns, 3 * heads * D, n, dv1, D, D0, D1)


@triton.jit
def backward_dq(
    QKV, DOUT, LSE, DOTS, DQKV, LEVEL, REACH, OWN, TILES, WHOLE, SOME, stride_b, stride_n, stride_s, stride_h,
    grad_b, grad_n, grad_h, n, heads, n_tiles, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    RULED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: their gradient, into DQKV."""
    tile, b, h = tl.program_id(0), tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    q_base = QKV + b * stride_b + h * stride_h
    do_base = DOUT + b * grad_b + h * grad_h
    rows = tile * BM + tl.arange(0, BM)
    q0 = _piece(q_base, rows, stride_n, n, D, 0, D0, DOT)
    do0 = _piece(do_base, rows, grad_n, n, D, 0, D0, DOT)
    dq0 = tl.zeros([BM, D0], tl.float32)
    q1, do1 = q0, do0
    if D1 > 0:
        q1 = _piece(q_base, rows, stride_n, n, D, D0, D1, DOT)
        do1 = _piece(do_base, rows, grad_n, n, D, D0, D1, DOT)
        dq1 = tl.zeros([BM, D1], tl.float32)
    whole = tl.load(WHOLE + tile)
    visited = whole + tl.load(SOME + tile)
    for j in range(visited):
        columns = tl.load(TILES + tile * n_tiles + j) * BN + tl.arange(0, BN)
        k0 = _piece(q_base + stride_s, columns, stride_n, n, D, 0, D0, DOT)
        v0 = _piece(q_base + 2 * stride_s, columns, stride_n, n, D, 0, D0, DOT)
        k1, v1 = k0, v0
        if D1 > 0:
            k1 = _piece(q_base + stride_s, columns, stride_n, n, D, D0, D1, DOT)
            v1 = _piece(q_base + 2 * stride_s, columns, stride_n, n, D, D0, D1, DOT)
        _, dscores = _weights(
            q0, q1, k0, k1, do0, do1, v0, v1, rows, columns, LSE + (b * heads + h) * n, DOTS + (b * heads + h) * n,
            n, scale, LEVEL, REACH, OWN, j >= whole, D1, RULED, PRECISION,
        )  # fmt: skip
        dscores = dscores.to(DOT)
        dq0 = tl.dot(dscores, k0, dq0, input_precision=PRECISION)
        if D1 > 0:
            dq1 = tl.dot(dscores, k1, dq1, input_precision=PRECISION)
    dq = DQKV + b * n * 3 * heads * D + h * D
    _put(dq, rows, 3 * heads * D, n, dq0 * scale, D, 0, D0)
    if D1 > 0:
        _put(dq, rows, 3 * heads * D, n, dq1 * scale, D, D0, D1)
