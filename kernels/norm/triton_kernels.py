# mypy: ignore-errors
"""Triton kernels of norm, modulation, gate and residual sum: every tensor is read once and written once.

Sums over the tokens of a sample, for the gradients of its modulation, take two stages without atomics: each program
sums the rows it has, and the few partial sums are added afterwards, always in the same order.
"""

import triton
import triton.language as tl

__all__ = ["backward", "forward", "gated", "gated_backward"]


@triton.jit
def _row(BASE, b, n, stride_b, stride_n, columns, keep):
    return tl.load(BASE + b * stride_b + n * stride_n + columns, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def forward(
    X, Y, GATE, SCALE, SHIFT, GAIN, OUT, NORMED, MEAN, RSTD,
    x_b, x_n, y_b, y_n, gate_b, gate_n, scale_b, scale_n, shift_b, shift_n, n, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, GATED: tl.constexpr, GAINED: tl.constexpr, RMS: tl.constexpr,
):  # fmt: skip
    """Compute one row: OUT = X + GATE Y (if GATED) and NORMED, contiguous [B, N, D]; MEAN, RSTD float32 [B, N]."""
    token, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    keep = columns < D
    at = b * n + token
    x = _row(X, b, token, x_b, x_n, columns, keep)
    if GATED:
        x += _row(GATE, b, token, gate_b, gate_n, columns, keep) * _row(Y, b, token, y_b, y_n, columns, keep)
        rounded = x.to(OUT.dtype.element_ty)  # the norm is of what is passed on
        tl.store(OUT + at * D + columns, rounded, mask=keep)
        x = rounded.to(tl.float32)
    mean = 0.0
    if not RMS:
        mean = tl.sum(x, 0) / D
        tl.store(MEAN + at, mean)
    centred = tl.where(keep, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
    tl.store(RSTD + at, rstd)
    normed = centred * rstd
    if GAINED:
        normed *= tl.load(GAIN + columns, mask=keep, other=0.0).to(tl.float32)
    scale = _row(SCALE, b, token, scale_b, scale_n, columns, keep)
    normed = normed * (1.0 + scale) + _row(SHIFT, b, token, shift_b, shift_n, columns, keep)
    tl.store(NORMED + at * D + columns, normed.to(NORMED.dtype.element_ty), mask=keep)


@triton.jit
def gated(X, Y, GATE, OUT, x_b, x_n, y_b, y_n, gate_b, gate_n, n, D: tl.constexpr, WIDTH: tl.constexpr):
    """Compute one row: OUT = X + GATE Y, contiguous [B, N, D]."""
    token, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    keep = columns < D
    x, y = _row(X, b, token, x_b, x_n, columns, keep), _row(Y, b, token, y_b, y_n, columns, keep)
    out = x + _row(GATE, b, token, gate_b, gate_n, columns, keep) * y
    tl.store(OUT + (b * n + token) * D + columns, out.to(OUT.dtype.element_ty), mask=keep)


@triton.jit
def gated_backward(
    Y, GATE, DOUT, DY, DGATE, y_b, y_n, gate_b, gate_n, dout_b, dout_n, n,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of ROWS rows of one sample: DY [B, N, D] and DGATE.

    DGATE: [B, N, D] if PER_TOKEN, else sums of these rows, float32 [B, parts, D].
    """
    part, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    keep = columns < D
    total = tl.zeros([WIDTH], tl.float32)
    for i in range(ROWS):
        token = part * ROWS + i
        if token < n:
            to = (b * n + token) * D + columns
            dout = _row(DOUT, b, token, dout_b, dout_n, columns, keep)
            of_gate = dout * _row(Y, b, token, y_b, y_n, columns, keep)
            dy = dout * _row(GATE, b, token, gate_b, gate_n, columns, keep)
            tl.store(DY + to, dy.to(DY.dtype.element_ty), mask=keep)
            if PER_TOKEN:
                tl.store(DGATE + to, of_gate.to(DGATE.dtype.element_ty), mask=keep)
            else:
                total += of_gate
    if not PER_TOKEN:
        tl.store(DGATE + (b * tl.num_programs(0) + part) * D + columns, total, mask=keep)


@triton.jit
def _through_norm(x, of_unit, MEAN, RSTD, keep, D: tl.constexpr, RMS: tl.constexpr):
    """Return the normed row, and x's gradient from that of the normed row."""
    rstd = tl.load(RSTD)
    if not RMS:
        x -= tl.load(MEAN)
    unit = tl.where(keep, x * rstd, 0.0)
    dx = of_unit - unit * (tl.sum(of_unit * unit, 0) / D)
    if not RMS:
        dx -= tl.sum(of_unit, 0) / D
    return unit, dx * rstd


@triton.jit
def backward(
    X, Y, GATE, SCALE, GAIN, MEAN, RSTD, DOUT, DNORMED, DX, DY, DGATE, DSCALE, DSHIFT, DGAIN,
    x_b, x_n, y_b, y_n, gate_b, gate_n, scale_b, scale_n, dout_b, dout_n, dnormed_b, dnormed_n, n,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, GATED: tl.constexpr, GAINED: tl.constexpr,
    RMS: tl.constexpr, PER_TOKEN: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of ROWS rows of one sample. X is what was normed.

    DX, DY [B, N, D]. DGATE, DSCALE, DSHIFT: [B, N, D] if PER_TOKEN, else sums of these rows, float32 [B, parts, D];
    DGAIN: always such sums.
    """
    part, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    keep = columns < D
    gain = tl.full([WIDTH], 1.0, tl.float32)
    if GAINED:
        gain = tl.load(GAIN + columns, mask=keep, other=0.0).to(tl.float32)
    gate_sum = tl.zeros([WIDTH], tl.float32)
    scale_sum = tl.zeros([WIDTH], tl.float32)
    shift_sum = tl.zeros([WIDTH], tl.float32)
    gain_sum = tl.zeros([WIDTH], tl.float32)
    for i in range(ROWS):
        token = part * ROWS + i
        if token < n:
            at = b * n + token
            x = _row(X, b, token, x_b, x_n, columns, keep)
            dnormed = _row(DNORMED, b, token, dnormed_b, dnormed_n, columns, keep)
            scale = _row(SCALE, b, token, scale_b, scale_n, columns, keep)
            unit, dx = _through_norm(x, dnormed * (1.0 + scale) * gain, MEAN + at, RSTD + at, keep, D, RMS)
            of_scale = dnormed * unit * gain
            if GATED:
                dx += _row(DOUT, b, token, dout_b, dout_n, columns, keep)
                gate = _row(GATE, b, token, gate_b, gate_n, columns, keep)
                of_gate = dx * _row(Y, b, token, y_b, y_n, columns, keep)
                tl.store(DY + at * D + columns, (dx * gate).to(DY.dtype.element_ty), mask=keep)
                if PER_TOKEN:
                    tl.store(DGATE + at * D + columns, of_gate.to(DGATE.dtype.element_ty), mask=keep)
                else:
                    gate_sum += of_gate
            tl.store(DX + at * D + columns, dx.to(DX.dtype.element_ty), mask=keep)
            if PER_TOKEN:
                tl.store(DSCALE + at * D + columns, of_scale.to(DSCALE.dtype.element_ty), mask=keep)
                tl.store(DSHIFT + at * D + columns, dnormed.to(DSHIFT.dtype.element_ty), mask=keep)
            else:
                scale_sum += of_scale
                shift_sum += dnormed
            if GAINED:
                gain_sum += dnormed * (1.0 + scale) * unit
    to = (b * tl.num_programs(0) + part) * D + columns
    if GATED and not PER_TOKEN:
        tl.store(DGATE + to, gate_sum, mask=keep)
    if not PER_TOKEN:
        tl.store(DSCALE + to, scale_sum, mask=keep)
        tl.store(DSHIFT + to, shift_sum, mask=keep)
    if GAINED:
        tl.store(DGAIN + to, gain_sum, mask=keep)
