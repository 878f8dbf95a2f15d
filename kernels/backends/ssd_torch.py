"""Mamba-2's scan as products of matrices: as masked attention for short sequences, and in chunks for long ones.

Decays are exponentials of differences of running sums, which are kept in double precision: as [b, T, H] they are small,
and a difference of two large sums has few digits left.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["anything", "chunked", "quadratic", "quadratic_refuses"]

LONGEST = 128  # tokens up to which everything is one chunk: measured on a processor
CHUNK = 64


def anything(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    return None


def quadratic_refuses(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    if x.shape[1] > LONGEST:
        return f"{x.shape[1]} tokens; beyond {LONGEST} chunks are less work"
    return None


def quadratic(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    x_, delta_, A_, B_, C_ = _by_head(x, delta, A, B, C)
    return _within(x_, delta_, (delta_.double() * A_.double()).cumsum(-1), B_, C_).transpose(1, 2).to(x.dtype)


def chunked(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Within chunks as before; between them one state for each, handed on from chunk to chunk."""
    b, length, h, _ = x.shape
    more = -length % CHUNK  # tokens with delta = 0, which neither decay nor drive
    x_, delta_, A_, B_, C_ = _by_head(x, delta, A, B, C)
    x_, B_, C_ = (pad(v, (0, 0, 0, more)).reshape(b, h, -1, CHUNK, v.shape[3]) for v in (x_, B_, C_))  # [b, H, c, Q, .]
    delta_ = pad(delta_, (0, more)).reshape(b, h, -1, CHUNK)  # [b, H, c, Q]
    total = (delta_.double() * A_.double()[..., None]).cumsum(-1)
    y = _within(x_, delta_, total, B_, C_)
    rest = (total[..., -1:] - total).exp().to(x_.dtype) * delta_  # what is left of each token at its chunk's end
    states = (B_ * rest[..., None]).mT @ x_  # [b, H, c, N, P]
    kept = total[..., -1].exp().to(x_.dtype)[..., None, None]  # [b, H, c, 1, 1]
    state, before = torch.zeros_like(states[:, :, 0]), []
    for new, keep in zip(states.unbind(2), kept.unbind(2), strict=True):
        before.append(state)
        state = keep * state + new
    y = y + total.exp().to(x_.dtype)[..., None] * (C_ @ torch.stack(before, 2))
    out: Tensor = y.flatten(2, 3)[:, :, :length].transpose(1, 2).to(x.dtype)
    return out


def _by_head(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """x, B, C [b, H, T, ...], delta [b, H, T] and A [H, 1], in at least float32."""
    kind, heads = torch.promote_types(x.dtype, torch.float32), x.shape[2]
    B, C = (v.to(kind).repeat_interleave(heads // v.shape[2], 2).transpose(1, 2) for v in (B, C))
    return x.to(kind).transpose(1, 2), delta.to(kind).transpose(1, 2), A.to(kind)[:, None], B, C


def _within(x: Tensor, delta: Tensor, total: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_i = sum over j <= i of (C_i . B_j) exp(total_i - total_j) delta_j x_j; the tokens are the last but one size."""
    length = x.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    exponent = (total[..., :, None] - total[..., None, :]).to(x.dtype)
    decay = exponent.masked_fill(later, -torch.inf).exp()  # masked first: a later token's would overflow
    return (C @ B.mT * decay) @ (delta[..., None] * x)
