# mypy: ignore-errors
"""Triton kernels of attention over q [B, NQ, H, d] and k, v [B, NK, H / GROUP, d], under any rule that has codes.

Each of the three has its own strides: packed q, k and v are a case of it. Heads of k and v that several of q share are
read by each, and their gradient is summed over them in one program. A head dim that is no power of two is cut into two
pieces, such as 72 = 64 + 8: the products run over 64 and 16 columns instead of over 128. The softmax is online and in
base 2. The tiles of keys that a tile of queries visits come as a list, those that are allowed in full first: only the
others are masked. No atomics: results are the same, bit for bit, every time.
(Dao et al. 2022, FlashAttention, arXiv 2205.14135; the two backward loops as in FlashAttention-2, arXiv 2307.08691.)
"""

# Names of shapes and constants are upper case, as in all kernels.
import triton
import triton.language as tl

__all__ = ["backward_dkv", "backward_dq", "forward", "row_dots"]


@triton.jit
def _load_columns(base, rows, step, n, D: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr, DOT: tl.constexpr):
    """Load the columns START ... of some rows of a matrix [n, D], zero outside of it."""
    columns = START + tl.arange(0, WIDTH)
    keep = (rows[:, None] < n) & (columns[None, :] < D)
    return tl.load(base + rows[:, None] * step + columns[None, :], mask=keep, other=0.0).to(DOT)


@triton.jit
def _store_columns(base, rows, step, n, value, D: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    columns = START + tl.arange(0, WIDTH)
    keep = (rows[:, None] < n) & (columns[None, :] < D)
    tl.store(base + rows[:, None] * step + columns[None, :], value.to(base.dtype.element_ty), mask=keep)


@triton.jit
def _allowed(
    rows, columns, nq, nk, LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, mask_q, mask_k,
    RULED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return which queries `rows` attend to which keys `columns`: none to or from a position beyond the last."""
    allowed = (rows[:, None] < nq) & (columns[None, :] < nk)
    if MASKED:
        unmasked = tl.load(MASK + rows[:, None] * mask_q + columns[None, :] * mask_k, mask=allowed, other=0)
        allowed = allowed & (unmasked != 0)
    if RULED:
        level = tl.load(LEVEL + columns, mask=columns < nk, other=0)
        reach = tl.load(REACH + rows, mask=rows < nq, other=0)
        key_segment = tl.load(SEGMENT_K + columns, mask=columns < nk, other=-1)
        query_segment = tl.load(SEGMENT_Q + rows, mask=rows < nq, other=-1)
        same = (query_segment[:, None] == key_segment[None, :]) & (query_segment[:, None] >= 0)
        allowed = allowed & ((level[None, :] <= reach[:, None]) | same)
    return allowed


@triton.jit
def _softmax_step(scores, top, total):
    """Return the new largest score, the factor of earlier sums, this tile's weights and the new sum; base 2."""
    new = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    decay = tl.exp2(top - safe)
    weights = tl.exp2(scores - safe[:, None])
    return new, decay, weights, total * decay + tl.sum(weights, 1)


@triton.jit
def forward(
    Q, K, V, OUT, LSE, LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, TILES, FULL, PARTIAL,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, mask_b, mask_q, mask_k, nq, nk, heads, n_tiles, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
    RULED: tl.constexpr, MASKED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one tile of queries of one head: OUT [B, NQ, H, D] and LSE [B, H, NQ], log2 of the sum."""
    tile, b, h = tl.program_id(0), tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    q_base = Q + b * q_b + h * q_h
    k_base, v_base = K + b * k_b + h // GROUP * k_h, V + b * v_b + h // GROUP * v_h
    if MASKED:
        MASK += b * mask_b
    rows = tile * BM + tl.arange(0, BM)
    q0 = _load_columns(q_base, rows, q_n, nq, D, 0, D0, DOT)
    acc0 = tl.zeros([BM, D0], tl.float32)
    if D1 > 0:
        q1 = _load_columns(q_base, rows, q_n, nq, D, D0, D1, DOT)
        acc1 = tl.zeros([BM, D1], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    full = tl.load(FULL + tile)
    visited = full + tl.load(PARTIAL + tile)
    for j in range(visited):
        columns = tl.load(TILES + tile * n_tiles + j) * BN + tl.arange(0, BN)
        scores = tl.dot(q0, tl.trans(_load_columns(k_base, columns, k_n, nk, D, 0, D0, DOT)), input_precision=PRECISION)
        if D1 > 0:
            k1 = _load_columns(k_base, columns, k_n, nk, D, D0, D1, DOT)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
        scores *= scale * 1.4426950408889634
        if j >= full:
            allowed = _allowed(
                rows, columns, nq, nk, LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, mask_q, mask_k, RULED, MASKED
            )
            scores = tl.where(allowed, scores, float("-inf"))
        top, decay, weights, total = _softmax_step(scores, top, total)
        weights = weights.to(DOT)
        v0 = _load_columns(v_base, columns, v_n, nk, D, 0, D0, DOT)
        acc0 = tl.dot(weights, v0, acc0 * decay[:, None], input_precision=PRECISION)
        if D1 > 0:
            v1 = _load_columns(v_base, columns, v_n, nk, D, D0, D1, DOT)
            acc1 = tl.dot(weights, v1, acc1 * decay[:, None], input_precision=PRECISION)
    total = tl.where(total == 0.0, 1.0, total)
    out = OUT + b * nq * heads * D + h * D
    _store_columns(out, rows, heads * D, nq, acc0 / total[:, None], D, 0, D0)
    if D1 > 0:
        _store_columns(out, rows, heads * D, nq, acc1 / total[:, None], D, D0, D1)
    top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(LSE + (b * heads + h) * nq + rows, top + tl.log2(total), mask=rows < nq)


@triton.jit
def row_dots(
    OUT, DOUT, DOTS, dout_b, dout_n, dout_h, nq, heads, D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr
):
    """Compute DOTS [B, H, NQ], the product of each row of OUT (contiguous) with its gradient."""
    b, h = tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    out = _load_columns(OUT + b * nq * heads * D + h * D, rows, heads * D, nq, D, 0, WIDTH, tl.float32)
    dout = _load_columns(DOUT + b * dout_b + h * dout_h, rows, dout_n, nq, D, 0, WIDTH, tl.float32)
    tl.store(DOTS + (b * heads + h) * nq + rows, tl.sum(out * dout, 1), mask=rows < nq)


@triton.jit
def _tile_gradients(
    q0, q1, k0, k1, do0, do1, v0, v1, rows, columns, LSE, DOTS, nq, nk, scale, LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK,
    mask_q, mask_k, partial,
    D1: tl.constexpr, RULED: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the softmax's weights [BM, BN] of a tile, and the gradient of its scores before their scale."""
    scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    dweights = tl.dot(do0, tl.trans(v0), input_precision=PRECISION)
    if D1 > 0:
        scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
        dweights = tl.dot(do1, tl.trans(v1), dweights, input_precision=PRECISION)
    lse = tl.load(LSE + rows, mask=rows < nq, other=0.0)
    dots = tl.load(DOTS + rows, mask=rows < nq, other=0.0)
    weights = tl.exp2(scores * (scale * 1.4426950408889634) - lse[:, None])
    if partial:
        allowed = _allowed(
            rows, columns, nq, nk, LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, mask_q, mask_k, RULED, MASKED
        )
        weights = tl.where(allowed, weights, 0.0)
    return weights, weights * (dweights - dots[:, None])


@triton.jit
def backward_dkv(
    Q, K, V, DOUT, LSE, DOTS, DK, DV, LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, TILES, FULL, PARTIAL,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, mask_b, mask_q, mask_k, dout_b, dout_n, dout_h, grad_b, grad_n, grad_h,
    nq, nk, heads, n_tiles, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
    RULED: tl.constexpr, MASKED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients DK and DV, of the same strides, of one tile of keys of one of their heads."""
    kv_heads = heads // GROUP
    tile, b, h = tl.program_id(0), tl.program_id(1).to(tl.int64) // kv_heads, tl.program_id(1) % kv_heads
    k_base, v_base = K + b * k_b + h * k_h, V + b * v_b + h * v_h
    if MASKED:
        MASK += b * mask_b
    columns = tile * BN + tl.arange(0, BN)
    k0 = _load_columns(k_base, columns, k_n, nk, D, 0, D0, DOT)
    v0 = _load_columns(v_base, columns, v_n, nk, D, 0, D0, DOT)
    dk0, dv0 = tl.zeros([BN, D0], tl.float32), tl.zeros([BN, D0], tl.float32)
    k1, v1 = k0, v0
    if D1 > 0:
        k1 = _load_columns(k_base, columns, k_n, nk, D, D0, D1, DOT)
        v1 = _load_columns(v_base, columns, v_n, nk, D, D0, D1, DOT)
        dk1, dv1 = tl.zeros([BN, D1], tl.float32), tl.zeros([BN, D1], tl.float32)
    full = tl.load(FULL + tile)
    visited = full + tl.load(PARTIAL + tile)
    for i in range(GROUP * visited):  # every query's head that reads this one, tile by tile
        j = i if GROUP == 1 else i % visited
        head = h if GROUP == 1 else h * GROUP + i // visited
        q_base, do_base, at = Q + b * q_b + head * q_h, DOUT + b * dout_b + head * dout_h, (b * heads + head) * nq
        rows = tl.load(TILES + tile * n_tiles + j) * BM + tl.arange(0, BM)
        q0 = _load_columns(q_base, rows, q_n, nq, D, 0, D0, DOT)
        do0 = _load_columns(do_base, rows, dout_n, nq, D, 0, D0, DOT)
        q1, do1 = q0, do0
        if D1 > 0:
            q1 = _load_columns(q_base, rows, q_n, nq, D, D0, D1, DOT)
            do1 = _load_columns(do_base, rows, dout_n, nq, D, D0, D1, DOT)
        weights, dscores = _tile_gradients(
            q0, q1, k0, k1, do0, do1, v0, v1, rows, columns, LSE + at, DOTS + at, nq, nk, scale,
            LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, mask_q, mask_k, j >= full, D1, RULED, MASKED, PRECISION,
        )  # fmt: skip
        weights, dscores = tl.trans(weights.to(DOT)), tl.trans(dscores.to(DOT))
        dv0 = tl.dot(weights, do0, dv0, input_precision=PRECISION)
        dk0 = tl.dot(dscores, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dv1 = tl.dot(weights, do1, dv1, input_precision=PRECISION)
            dk1 = tl.dot(dscores, q1, dk1, input_precision=PRECISION)
    dk, dv = DK + b * grad_b + h * grad_h, DV + b * grad_b + h * grad_h
    _store_columns(dk, columns, grad_n, nk, dk0 * scale, D, 0, D0)
    _store_columns(dv, columns, grad_n, nk, dv0, D, 0, D0)
    if D1 > 0:
        _store_columns(dk, columns, grad_n, nk, dk1 * scale, D, D0, D1)
        _store_columns(dv, columns, grad_n, nk, dv1, D, D0, D1)


@triton.jit
def backward_dq(
    Q, K, V, DOUT, LSE, DOTS, DQ, LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, TILES, FULL, PARTIAL,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, mask_b, mask_q, mask_k, dout_b, dout_n, dout_h, grad_b, grad_n, grad_h,
    nq, nk, heads, n_tiles, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
    RULED: tl.constexpr, MASKED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient DQ of one tile of queries of one head."""
    tile, b, h = tl.program_id(0), tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    q_base, do_base, at = Q + b * q_b + h * q_h, DOUT + b * dout_b + h * dout_h, (b * heads + h) * nq
    k_base, v_base = K + b * k_b + h // GROUP * k_h, V + b * v_b + h // GROUP * v_h
    if MASKED:
        MASK += b * mask_b
    rows = tile * BM + tl.arange(0, BM)
    q0 = _load_columns(q_base, rows, q_n, nq, D, 0, D0, DOT)
    do0 = _load_columns(do_base, rows, dout_n, nq, D, 0, D0, DOT)
    dq0 = tl.zeros([BM, D0], tl.float32)
    q1, do1 = q0, do0
    if D1 > 0:
        q1 = _load_columns(q_base, rows, q_n, nq, D, D0, D1, DOT)
        do1 = _load_columns(do_base, rows, dout_n, nq, D, D0, D1, DOT)
        dq1 = tl.zeros([BM, D1], tl.float32)
    full = tl.load(FULL + tile)
    visited = full + tl.load(PARTIAL + tile)
    for j in range(visited):
        columns = tl.load(TILES + tile * n_tiles + j) * BN + tl.arange(0, BN)
        k0 = _load_columns(k_base, columns, k_n, nk, D, 0, D0, DOT)
        v0 = _load_columns(v_base, columns, v_n, nk, D, 0, D0, DOT)
        k1, v1 = k0, v0
        if D1 > 0:
            k1 = _load_columns(k_base, columns, k_n, nk, D, D0, D1, DOT)
            v1 = _load_columns(v_base, columns, v_n, nk, D, D0, D1, DOT)
        _, dscores = _tile_gradients(
            q0, q1, k0, k1, do0, do1, v0, v1, rows, columns, LSE + at, DOTS + at, nq, nk, scale,
            LEVEL, REACH, SEGMENT_K, SEGMENT_Q, MASK, mask_q, mask_k, j >= full, D1, RULED, MASKED, PRECISION,
        )  # fmt: skip
        dscores = dscores.to(DOT)
        dq0 = tl.dot(dscores, k0, dq0, input_precision=PRECISION)
        if D1 > 0:
            dq1 = tl.dot(dscores, k1, dq1, input_precision=PRECISION)
    dq = DQ + b * grad_b + h * grad_h
    _store_columns(dq, rows, grad_n, nq, dq0 * scale, D, 0, D0)
    if D1 > 0:
        _store_columns(dq, rows, grad_n, nq, dq1 * scale, D, D0, D1)
