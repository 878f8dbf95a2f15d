# mypy: ignore-errors
"""Triton kernels of activations: one read and one write of each tensor, float32 inside.

Sums over rows, for the gradients of biases and coefficients, take two stages without atomics: a program sums its
rows, and the partial sums are added afterwards, always in the same order (unlike FlashKAT's, Raffel & Chen 2025,
arXiv 2505.13813).
"""

import triton
import triton.language as tl

__all__ = [
    "gelu_backward",
    "gelu_forward",
    "rational_backward",
    "rational_forward",
    "swiglu_backward",
    "swiglu_forward",
]


@triton.jit
def _tile(rows, columns, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the rows and columns of one program's tile of a matrix [n, d], and which of them exist."""
    row = rows * ROWS + tl.arange(0, ROWS)
    column = columns * COLUMNS + tl.arange(0, COLUMNS)
    return row.to(tl.int64)[:, None], column[None, :], (row[:, None] < n) & (column[None, :] < d)


@triton.jit
def _sigmoid(u):
    """Return sigmoid(u) and 1 - sigmoid(u), each with all its digits; no exponential overflows."""
    e = tl.exp(-tl.abs(u))
    near, far = 1.0 / (1.0 + e), e / (1.0 + e)
    return tl.where(u >= 0.0, near, far), tl.where(u >= 0.0, far, near)


@triton.jit
def swiglu_forward(AB, OUT, stride, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute one tile of silu(a) b."""
    row, column, keep = _tile(tl.program_id(0), tl.program_id(1), n, d, ROWS, COLUMNS)
    a = tl.load(AB + row * stride + column, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(AB + row * stride + d + column, mask=keep, other=0.0).to(tl.float32)
    s, _ = _sigmoid(a)
    tl.store(OUT + row * d + column, (a * s * b).to(OUT.dtype.element_ty), mask=keep)


@triton.jit
def swiglu_backward(AB, DOUT, DAB, stride, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute one tile of the gradients of a and b."""
    row, column, keep = _tile(tl.program_id(0), tl.program_id(1), n, d, ROWS, COLUMNS)
    a = tl.load(AB + row * stride + column, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(AB + row * stride + d + column, mask=keep, other=0.0).to(tl.float32)
    dout = tl.load(DOUT + row * d + column, mask=keep, other=0.0).to(tl.float32)
    s, rest = _sigmoid(a)
    da = dout * b * s * (1.0 + a * rest)
    tl.store(DAB + row * 2 * d + column, da.to(DAB.dtype.element_ty), mask=keep)
    tl.store(DAB + row * 2 * d + d + column, (dout * a * s).to(DAB.dtype.element_ty), mask=keep)


@triton.jit
def _gate(h):
    """Return GELU(h) / h = s = sigmoid(2 sqrt(2 / pi) (h + 0.044715 h^3)), and h s' / s."""
    square = h * h
    s, rest = _sigmoid(1.5957691216057308 * h * (1.0 + 0.044715 * square))
    return s, rest * 1.5957691216057308 * h * (1.0 + 0.134145 * square)


@triton.jit
def gelu_forward(X, BIAS, OUT, stride, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIASED: tl.constexpr):
    """Compute one tile of GELU(x + bias)."""
    row, column, keep = _tile(tl.program_id(0), tl.program_id(1), n, d, ROWS, COLUMNS)
    h = tl.load(X + row * stride + column, mask=keep, other=0.0).to(tl.float32)
    if BIASED:
        h += tl.load(BIAS + column, mask=column < d, other=0.0).to(tl.float32)
    s, _ = _gate(h)
    tl.store(OUT + row * d + column, (h * s).to(OUT.dtype.element_ty), mask=keep)


@triton.jit
def gelu_backward(
    X, BIAS, DOUT, DX, DBIAS, stride, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIASED: tl.constexpr
):
    """Compute one tile of DX, and of DBIAS, float32 [row tiles, d], the sums of these rows."""
    row, column, keep = _tile(tl.program_id(0), tl.program_id(1), n, d, ROWS, COLUMNS)
    h = tl.load(X + row * stride + column, mask=keep, other=0.0).to(tl.float32)
    if BIASED:
        h += tl.load(BIAS + column, mask=column < d, other=0.0).to(tl.float32)
    dout = tl.load(DOUT + row * d + column, mask=keep, other=0.0).to(tl.float32)
    s, slope = _gate(h)
    dx = dout * s * (1.0 + slope)
    tl.store(DX + row * d + column, dx.to(DX.dtype.element_ty), mask=keep)
    if BIASED:
        at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(DBIAS + tl.program_id(0).to(tl.int64) * d + at, tl.sum(dx, 0), mask=at < d)


@triton.jit
def _coefficients(A, B):
    """Load six coefficients of the numerator, and four absolute ones of the denominator."""
    a0, a1, a2 = tl.load(A).to(tl.float32), tl.load(A + 1).to(tl.float32), tl.load(A + 2).to(tl.float32)
    a3, a4, a5 = tl.load(A + 3).to(tl.float32), tl.load(A + 4).to(tl.float32), tl.load(A + 5).to(tl.float32)
    b1, b2 = tl.abs(tl.load(B).to(tl.float32)), tl.abs(tl.load(B + 1).to(tl.float32))
    b3, b4 = tl.abs(tl.load(B + 2).to(tl.float32)), tl.abs(tl.load(B + 3).to(tl.float32))
    return a0, a1, a2, a3, a4, a5, b1, b2, b3, b4


@triton.jit
def rational_forward(X, A, B, OUT, stride, n, d, size, a_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute one tile of the `size` channels of one group, which is program_id(2)."""
    group = tl.program_id(2)
    row, column, keep = _tile(tl.program_id(0), tl.program_id(1), n, size, ROWS, COLUMNS)
    a0, a1, a2, a3, a4, a5, b1, b2, b3, b4 = _coefficients(A + group * a_stride, B + group * 4)
    x = tl.load(X + row * stride + group * size + column, mask=keep, other=0.0).to(tl.float32)
    r = tl.abs(x)
    top = a0 + x * (a1 + x * (a2 + x * (a3 + x * (a4 + x * a5))))
    y = top / (1.0 + r * (b1 + r * (b2 + r * (b3 + r * b4))))
    tl.store(OUT + row * d + group * size + column, y.to(OUT.dtype.element_ty), mask=keep)


@triton.jit
def rational_backward(
    X, A, B, DOUT, DX, DA, DB, stride, n, d, size, a_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Compute the gradients of one group in ROWS rows. DA [parts, G, 6], DB [parts, G, 4]: sums of rows, float32."""
    group = tl.program_id(1)
    a0, a1, a2, a3, a4, a5, b1, b2, b3, b4 = _coefficients(A + group * a_stride, B + group * 4)
    s0 = tl.zeros([COLUMNS], tl.float32)
    s1, s2, s3, s4, s5, t1, t2, t3, t4 = s0, s0, s0, s0, s0, s0, s0, s0, s0
    for tile in range(tl.cdiv(size, COLUMNS)):
        row, column, keep = _tile(tl.program_id(0), tile, n, size, ROWS, COLUMNS)
        x = tl.load(X + row * stride + group * size + column, mask=keep, other=0.0).to(tl.float32)
        dout = tl.load(DOUT + row * d + group * size + column, mask=keep, other=0.0).to(tl.float32)
        r = tl.abs(x)
        sign = tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))
        q = 1.0 + r * (b1 + r * (b2 + r * (b3 + r * b4)))
        y = (a0 + x * (a1 + x * (a2 + x * (a3 + x * (a4 + x * a5))))) / q
        slope = a1 + x * (2.0 * a2 + x * (3.0 * a3 + x * (4.0 * a4 + x * 5.0 * a5)))
        slope -= y * sign * (b1 + r * (2.0 * b2 + r * (3.0 * b3 + r * 4.0 * b4)))
        w = dout / q
        tl.store(DX + row * d + group * size + column, (w * slope).to(DX.dtype.element_ty), mask=keep)
        v = w * y  # of the denominator, but for its sign
        x2, r3 = x * x, r * r * r
        x4 = x2 * x2
        s0 += tl.sum(w, 0)
        s1 += tl.sum(w * x, 0)
        s2 += tl.sum(w * x2, 0)
        s3 += tl.sum(w * (x2 * x), 0)
        s4 += tl.sum(w * x4, 0)
        s5 += tl.sum(w * (x4 * x), 0)
        t1 += tl.sum(v * r, 0)
        t2 += tl.sum(v * x2, 0)
        t3 += tl.sum(v * r3, 0)
        t4 += tl.sum(v * x4, 0)
    at = tl.program_id(0) * tl.num_programs(1) + group
    tl.store(DA + at * 6, tl.sum(s0, 0))
    tl.store(DA + at * 6 + 1, tl.sum(s1, 0))
    tl.store(DA + at * 6 + 2, tl.sum(s2, 0))
    tl.store(DA + at * 6 + 3, tl.sum(s3, 0))
    tl.store(DA + at * 6 + 4, tl.sum(s4, 0))
    tl.store(DA + at * 6 + 5, tl.sum(s5, 0))
    tl.store(DB + at * 4, -tl.sum(t1, 0))
    tl.store(DB + at * 4 + 1, -tl.sum(t2, 0))
    tl.store(DB + at * 4 + 2, -tl.sum(t3, 0))
    tl.store(DB + at * 4 + 3, -tl.sum(t4, 0))
