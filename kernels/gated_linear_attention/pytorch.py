"""Gated linear attention in chunks: each token with those of its chunk, and with the state before it.

Weights are exponentials of differences of running sums of g, which are kept in double precision; of one sum alone they
would overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.gated_linear_attention.call import GLACall

__all__ = ["chunked"]

CHUNK = 16


def chunked(call: GLACall) -> Tensor:
    """Compute pairs of tokens within chunks, [B, c, H, Q, Q, d] numbers, and hand one state from chunk to chunk."""
    kind, length = torch.promote_types(call.v.dtype, torch.float32), call.q.shape[1]
    q, k, v, g = (_in_chunks(x.to(kind)) for x in call[:4])  # each [B, c, H, Q, ...]
    total = g.double().cumsum(-2)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).triu(1)
    between = (total[..., :, None, :] - total[..., None, :, :]).masked_fill(later[..., None], -torch.inf)
    between = between.to(kind).exp()
    inside = torch.einsum("bchtd,bchsd,bchtsd->bchts", q, k, between) @ v
    rest = (total[..., -1:, :] - total).to(kind).exp()  # what is left of each token at its chunk's end
    new, decay = (k * rest).mT @ v, total[..., -1, :, None].to(kind).exp()  # [B, c, H, d, e], [B, c, H, d, 1]
    state, before = torch.zeros_like(new[:, 0]), []
    for added, kept in zip(new.unbind(1), decay.unbind(1), strict=True):
        before.append(state)
        state = kept * state + added
    out = inside + (q * total.to(kind).exp()) @ torch.stack(before, 1)
    joined = out.transpose(2, 3).flatten(1, 2)[:, :length]  # [B, T, H, e]
    return (call.scale * joined).to(call.v.dtype)


def _in_chunks(x: Tensor) -> Tensor:
    """Return x [B, T, H, n] as [B, chunks, H, CHUNK, n]; the tokens added at the end are zeros."""
    more = -x.shape[1] % CHUNK
    return pad(x, (0, 0, 0, 0, 0, more)).unflatten(1, (-1, CHUNK)).transpose(2, 3)
