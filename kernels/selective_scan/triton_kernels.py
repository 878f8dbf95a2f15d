# mypy: ignore-errors
"""Triton kernels of the selective scan: a program keeps the states of some channels in registers, token after token.

The backward pass goes through the chunks from the last, through each of them forwards, storing its states in memory of
its own, and then backwards. What all channels add to, dB and dC, is summed in two stages without atomics.
"""

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
def _vector(BASE, at, columns, keep):
    return tl.load(BASE + at + columns, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _token(ORDER, visit, length, ORDERED: tl.constexpr, REVERSE: tl.constexpr):
    """Return the index of the token that the scan visits after `visit` others."""
    if REVERSE:
        visit = length - 1 - visit
    if ORDERED:
        visit = tl.load(ORDER + visit)
    return visit


@triton.jit
def forward(
    U, DELTA, A, B, C, ORDER, Y, KEPT, u_b, u_t, delta_b, delta_t, b_b, b_t, c_b, c_t, length, d, n, chunks,
    BD: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, ORDERED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Compute BD channels of one row of the batch. KEPT float32 [b, chunks, D, N]: the state before each chunk.

    ORDER int64 [T], if ORDERED: the tokens as they are visited; from the other end if REVERSE.
    """
    row, channel = tl.program_id(1).to(tl.int64), tl.program_id(0) * BD + tl.arange(0, BD)
    state = tl.arange(0, BN)
    of_d, of_n = channel < d, state < n
    both = of_d[:, None] & of_n[None, :]
    a = tl.load(A + channel[:, None] * n + state[None, :], mask=both, other=0.0).to(tl.float32) * 1.4426950408889634
    h = tl.zeros([BD, BN], tl.float32)
    for chunk in range(chunks):
        kept = KEPT + ((row * chunks + chunk) * d + channel[:, None]) * n + state[None, :]
        tl.store(kept, h, mask=both)
        for visit in range(chunk * CHUNK, tl.minimum(length, (chunk + 1) * CHUNK)):
            t = _token(ORDER, visit, length, ORDERED, REVERSE)
            u = _vector(U, row * u_b + t * u_t, channel, of_d)
            delta = _vector(DELTA, row * delta_b + t * delta_t, channel, of_d)
            b, c = _vector(B, row * b_b + t * b_t, state, of_n), _vector(C, row * c_b + t * c_t, state, of_n)
            h = tl.exp2(delta[:, None] * a) * h + (delta * u)[:, None] * b[None, :]
            y = tl.sum(h * c[None, :], 1)
            tl.store(Y + (row * length + t) * d + channel, y.to(Y.dtype.element_ty), mask=of_d)


@triton.jit
def backward(
    U, DELTA, A, B, C, ORDER, KEPT, DY, DU, DDELTA, DA, DB, DC, STATES,
    u_b, u_t, delta_b, delta_t, b_b, b_t, c_b, c_t, length, d, n, chunks,
    BD: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, ORDERED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of BD channels of one row. DA [b, D, N], DB, DC [b, blocks, T, N]: parts of sums, float32.

    STATES float32 [b, blocks, CHUNK, BD, BN]: room for the states of one chunk.
    """
    row, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    channel, state = block * BD + tl.arange(0, BD), tl.arange(0, BN)
    of_d, of_n = channel < d, state < n
    both = of_d[:, None] & of_n[None, :]
    a_log = tl.load(A + channel[:, None] * n + state[None, :], mask=both, other=0.0).to(tl.float32)
    a = a_log * 1.4426950408889634
    room = STATES + (row * tl.num_programs(0) + block) * CHUNK * BD * BN
    room += tl.arange(0, BD)[:, None] * BN + state[None, :]
    part = (row * tl.num_programs(0) + block) * length
    g = tl.zeros([BD, BN], tl.float32)
    da = tl.zeros([BD, BN], tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        first, last = chunk * CHUNK, tl.minimum(length, (chunk + 1) * CHUNK)
        h = tl.load(KEPT + ((row * chunks + chunk) * d + channel[:, None]) * n + state[None, :], mask=both, other=0.0)
        for visit in range(first, last):
            t = _token(ORDER, visit, length, ORDERED, REVERSE)
            u = _vector(U, row * u_b + t * u_t, channel, of_d)
            delta = _vector(DELTA, row * delta_b + t * delta_t, channel, of_d)
            b = _vector(B, row * b_b + t * b_t, state, of_n)
            tl.store(room + (visit - first) * BD * BN, h)  # the state before this token
            h = tl.exp2(delta[:, None] * a) * h + (delta * u)[:, None] * b[None, :]
        tl.debug_barrier()  # another thread may read what this one has written
        for back_visit in range(last - first):
            visit = last - 1 - back_visit
            t = _token(ORDER, visit, length, ORDERED, REVERSE)
            at = row * length + t
            u = _vector(U, row * u_b + t * u_t, channel, of_d)
            delta = _vector(DELTA, row * delta_b + t * delta_t, channel, of_d)
            b, c = _vector(B, row * b_b + t * b_t, state, of_n), _vector(C, row * c_b + t * c_t, state, of_n)
            dy = _vector(DY, at * d, channel, of_d)
            before = tl.load(room + (visit - first) * BD * BN)
            kept = tl.exp2(delta[:, None] * a)
            driven = delta * u
            after = kept * before + driven[:, None] * b[None, :]
            g += dy[:, None] * c[None, :]
            rate = g * kept * before  # of delta A
            from_b = tl.sum(g * b[None, :], 1)
            tl.store(DU + at * d + channel, (from_b * delta).to(DU.dtype.element_ty), mask=of_d)
            ddelta = from_b * u + tl.sum(rate * a_log, 1)
            tl.store(DDELTA + at * d + channel, ddelta.to(DDELTA.dtype.element_ty), mask=of_d)
            tl.store(DB + (part + t) * n + state, tl.sum(g * driven[:, None], 0), mask=of_n)
            tl.store(DC + (part + t) * n + state, tl.sum(after * dy[:, None], 0), mask=of_n)
            da += rate * delta[:, None]
            g = g * kept
        tl.debug_barrier()
    tl.store(DA + (row * d + channel[:, None]) * n + state[None, :], da, mask=both)
