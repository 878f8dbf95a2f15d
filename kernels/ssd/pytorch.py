"""Mamba-2's scan as products of matrices: as masked attention for short sequences, and in chunks for long ones.

Decays are exponentials of differences of running sums, which are kept in double precision: as [b, T, H] they are small,
and a difference of two large sums has few digits left.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "anything",
    "by_head",
    "chunked",
    "handed_on",
    "in_chunks",
    "joined",
    "quadratic",
    "quadratic_refuses",
]

LONGEST = 128  # tokens up to which everything is one chunk: measured on a processor
CHUNK = 64


def anything(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    return None


def quadratic_refuses(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    if x.shape[1] > LONGEST:
        return f"{x.shape[1]} tokens; beyond {LONGEST} chunks are less work"
    return None


def quadratic(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return _within(*by_head(x, delta, A, B, C)).transpose(1, 2).to(x.dtype)


def chunked(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Within chunks as before; between them one state for each, handed on from chunk to chunk."""
    parts = by_head(*in_chunks(x, delta, A, B, C, CHUNK))
    return joined(_within(*parts) + handed_on(-(-x.shape[1] // CHUNK), *parts), x)


def in_chunks(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """The arguments with chunks for rows of the batch, [b c, Q, ...]."""
    more = -x.shape[1] % chunk  # tokens with delta = 0, which neither decay nor drive
    x, delta, B, C = (pad(v, (0, 0) * (v.ndim - 2) + (0, more)) if more else v for v in (x, delta, B, C))
    x, delta, B, C = (v.reshape(-1, chunk, *v.shape[2:]) for v in (x, delta, B, C))
    return x, delta, A, B, C


def joined(y: Tensor, x: Tensor) -> Tensor:
    """y of chunks [b c, H, Q, P] as x is, [b, T, H, P]."""
    _, length, h, p = x.shape
    tokens = -(-length // y.shape[2]) * y.shape[2]
    return y.transpose(1, 2).reshape(-1, tokens, h, p)[:, :length].to(x.dtype)


def handed_on(chunks: int, x: Tensor, delta: Tensor, total: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What each of the chunks [b c, H, Q, ...] of `by_head` gets from those before it, [b c, H, Q, P]; c: `chunks`."""
    h, p = x.shape[1], x.shape[3]
    rest = (total[..., -1:] - total).exp().to(x.dtype) * delta  # what is left of each token at its chunk's end
    states = ((B * rest[..., None]).mT @ x).reshape(-1, chunks, h, B.shape[3], p)  # [b, c, H, N, P]
    kept = total[..., -1].exp().to(x.dtype).reshape(-1, chunks, h, 1, 1)
    state, before = torch.zeros_like(states[:, 0]), []
    for new, keep in zip(states.unbind(1), kept.unbind(1), strict=True):
        before.append(state)
        state = keep * state + new
    return total.exp().to(x.dtype)[..., None] * (C @ torch.stack(before, 1).flatten(0, 1))


def by_head(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """x [b, H, T, P], delta and the running sum of delta A [b, H, T], B, C [b, H, T, N]; the sum in double precision,
    the others in at least float32.
    """
    kind, heads = torch.promote_types(x.dtype, torch.float32), x.shape[2]
    B, C = (v.to(kind).transpose(1, 2).repeat_interleave(heads // v.shape[2], 1) for v in (B, C))
    step = delta.to(kind).mT
    return (
        x.to(kind).transpose(1, 2).contiguous(),
        step,
        (step.double() * A.to(kind).double()[:, None]).cumsum(-1),
        B,
        C,
    )


def _within(x: Tensor, delta: Tensor, total: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_i = sum over j <= i of (C_i . B_j) exp(total_i - total_j) delta_j x_j; the tokens are the last but one size."""
    length = x.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    exponent = (total[..., :, None] - total[..., None, :]).to(x.dtype)
    decay = exponent.masked_fill(later, -torch.inf).exp()  # masked first: a later token's would overflow
    return (C @ B.mT * decay) @ (delta[..., None] * x)
