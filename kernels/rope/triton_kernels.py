# mypy: ignore-errors
"""Triton kernels of the norm and the rotation of heads: each head is read once, with any strides, and written once.

They run before attention's kernels and are no part of them: a tile of keys is loaded once for every tile of queries,
and would be normed and rotated as often, and again in both loops of the backward pass.
"""

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
def _partners(columns, D: tl.constexpr, SPLIT: tl.constexpr):
    """Return each channel's partner, and the partner's sign in a quarter turn: (a, b) -> (-b, a)."""
    if SPLIT:
        first = columns < D // 2
        partner_columns = tl.where(first, columns + D // 2, columns - D // 2)
    else:
        first = (columns & 1) == 0
        partner_columns = columns ^ 1
    return partner_columns, tl.where(first, -1.0, 1.0)


@triton.jit
def _rows(BASE, steps, columns, keep):
    """Load the rows that begin `steps` after BASE, in float32."""
    return tl.load(BASE + steps[:, None] + columns[None, :], mask=keep, other=0.0).to(tl.float32)


@triton.jit
def forward(
    X, GAIN, COS, SIN, OUT, x_b, x_n, x_h, cos_b, cos_n, sin_b, sin_n, rows_in_all, heads, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, NORMED: tl.constexpr, ROTATED: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Compute BM heads of one sample, of all its N x H: OUT, contiguous [B, N, H, D]."""
    b = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.arange(0, WIDTH)
    partner_columns, sign = _partners(columns, D, SPLIT)
    keep = (rows[:, None] < rows_in_all) & (columns[None, :] < D)
    position = rows // heads
    at = b * x_b + position * x_n + rows % heads * x_h
    y = _rows(X, at, columns, keep)
    if NORMED:
        rstd = 1.0 / tl.sqrt(tl.sum(y * y, 1) / D + eps)
        y *= rstd[:, None] * tl.load(GAIN + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    if ROTATED:
        partner = _rows(X, at, partner_columns, keep)
        if NORMED:
            gain = tl.load(GAIN + partner_columns, mask=columns < D, other=0.0).to(tl.float32)
            partner *= rstd[:, None] * gain[None, :]
        cos = _rows(COS, b * cos_b + position * cos_n, columns, keep)
        y = y * cos + sign[None, :] * partner * _rows(SIN, b * sin_b + position * sin_n, columns, keep)
    to = (b * rows_in_all + rows) * D
    tl.store(OUT + to[:, None] + columns[None, :], y.to(OUT.dtype.element_ty), mask=keep)


@triton.jit
def backward(
    X, GAIN, COS, SIN, DOUT, DX, DGAIN, x_b, x_n, x_h, dout_b, dout_n, dout_h, cos_b, cos_n, sin_b, sin_n,
    rows_in_all, heads, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, TILES: tl.constexpr, NORMED: tl.constexpr,
    ROTATED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of TILES times BM heads of one sample: DX, contiguous, and DGAIN, the sum of these heads.

    DGAIN is float32 [B, parts, D]. X and GAIN are read and DGAIN is written if NORMED.
    """
    b, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    partner_columns, sign = _partners(columns, D, SPLIT)
    of_gain = tl.zeros([WIDTH], tl.float32)
    for i in range(TILES):
        rows = (part * TILES + i) * BM + tl.arange(0, BM)
        keep = (rows[:, None] < rows_in_all) & (columns[None, :] < D)
        position = rows // heads
        at = b * dout_b + position * dout_n + rows % heads * dout_h
        dy = _rows(DOUT, at, columns, keep)
        if ROTATED:  # rotate back
            partner = _rows(DOUT, at, partner_columns, keep)
            partner *= _rows(SIN, b * sin_b + position * sin_n, partner_columns, keep)
            dy = dy * _rows(COS, b * cos_b + position * cos_n, columns, keep) - sign[None, :] * partner
        if NORMED:
            x = _rows(X, b * x_b + position * x_n + rows % heads * x_h, columns, keep)
            rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / D + eps)
            unit = x * rstd[:, None]
            of_gain += tl.sum(dy * unit, 0)
            dy *= tl.load(GAIN + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
            dy = rstd[:, None] * (dy - unit * (tl.sum(dy * unit, 1) / D)[:, None])
        to = (b * rows_in_all + rows) * D
        tl.store(DX + to[:, None] + columns[None, :], dy.to(DX.dtype.element_ty), mask=keep)
    if NORMED:
        tl.store(DGAIN + (b * tl.num_programs(0) + part) * D + columns, of_gain, mask=columns < D)
