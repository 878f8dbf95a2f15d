"""Mamba-2's scan as products of matrices: as masked attention for short sequences, and in chunks for long ones.

Decays are exponentials of differences of running sums, which are kept in double precision: as [b, T, H] they are small,
and a difference of two large sums has few digits left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.ssd.call import SSDCall

__all__ = [
    "Heads",
    "by_head",
    "chunked",
    "from_earlier_chunks",
    "in_chunks",
    "join_chunks",
    "quadratic",
    "quadratic_reason",
]

LONGEST = 128  # tokens up to which everything is one chunk: measured on a processor
CHUNK = 64


class Heads(NamedTuple):
    """A call with heads before tokens, in at least float32.

    Attributes:
        x: [b, H, T, P].
        delta: [b, H, T].
        total: running sum of delta A, float64 [b, H, T].
        B, C: [b, H, T, N].
    """

    x: Tensor
    delta: Tensor
    total: Tensor
    B: Tensor
    C: Tensor


def quadratic_reason(call: SSDCall) -> str | None:
    """Return why chunks are faster, or None."""
    length = call.x.shape[1]
    return f"{length} tokens; beyond {LONGEST} chunks are less work" if length > LONGEST else None


def quadratic(call: SSDCall) -> Tensor:
    """Compute all tokens as one masked attention."""
    return _masked_attention(by_head(call)).transpose(1, 2).to(call.x.dtype)


def chunked(call: SSDCall) -> Tensor:
    """Compute masked attention within chunks, and hand one state for each from chunk to chunk."""
    heads = by_head(in_chunks(call, CHUNK))
    return join_chunks(_masked_attention(heads) + from_earlier_chunks(-(-call.x.shape[1] // CHUNK), heads), call.x)


def in_chunks(call: SSDCall, chunk: int) -> SSDCall:
    """Return the call with chunks for rows of the batch, [b c, Q, ...]."""
    x, delta, A, B, C = call
    more = -x.shape[1] % chunk  # tokens with delta = 0, which neither decay nor drive
    x, delta, B, C = (pad(v, (0, 0) * (v.ndim - 2) + (0, more)) if more else v for v in (x, delta, B, C))
    x, delta, B, C = (v.reshape(-1, chunk, *v.shape[2:]) for v in (x, delta, B, C))
    return SSDCall(x, delta, A, B, C)


def join_chunks(y: Tensor, x: Tensor) -> Tensor:
    """Return y of chunks [b c, H, Q, P] as x is, [b, T, H, P]."""
    _, length, h, p = x.shape
    tokens = -(-length // y.shape[2]) * y.shape[2]
    return y.transpose(1, 2).reshape(-1, tokens, h, p)[:, :length].to(x.dtype)


def from_earlier_chunks(chunks: int, heads: Heads) -> Tensor:
    """Return what each of c chunks [b c, H, Q, ...] gets from those before it, [b c, H, Q, P]."""
    x, delta, total, B, C = heads
    h, p = x.shape[1], x.shape[3]
    rest = (total[..., -1:] - total).exp().to(x.dtype) * delta  # what is left of each token at its chunk's end
    states = ((B * rest[..., None]).mT @ x).reshape(-1, chunks, h, B.shape[3], p)  # [b, c, H, N, P]
    decays = total[..., -1].exp().to(x.dtype).reshape(-1, chunks, h, 1, 1)
    state, before = torch.zeros_like(states[:, 0]), []
    for new, decay in zip(states.unbind(1), decays.unbind(1), strict=True):
        before.append(state)
        state = decay * state + new
    return total.exp().to(x.dtype)[..., None] * (C @ torch.stack(before, 1).flatten(0, 1))


def by_head(call: SSDCall) -> Heads:
    """Return the call with heads before tokens and the running sum of delta A."""
    x, delta, A, B, C = call
    kind, heads = torch.promote_types(x.dtype, torch.float32), x.shape[2]
    B, C = (v.to(kind).transpose(1, 2).repeat_interleave(heads // v.shape[2], 1) for v in (B, C))
    step = delta.to(kind).mT
    total = (step.double() * A.to(kind).double()[:, None]).cumsum(-1)
    return Heads(x.to(kind).transpose(1, 2).contiguous(), step, total, B, C)


def _masked_attention(heads: Heads) -> Tensor:
    """Return y_i = sum over j <= i of (C_i . B_j) exp(total_i - total_j) delta_j x_j, [..., T, P]."""
    x, delta, total, B, C = heads
    length = x.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    exponent = (total[..., :, None] - total[..., None, :]).to(x.dtype)
    decay = exponent.masked_fill(later, -torch.inf).exp()  # masked first: a later token's would overflow
    return (C @ B.mT * decay) @ (delta[..., None] * x)
