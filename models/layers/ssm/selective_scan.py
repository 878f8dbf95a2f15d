"""The selective scan: a diagonal state space whose step, input and output maps depend on the token (Mamba)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from gen.models.layers.ssm.scan import linear_scan, linear_scan_reference

__all__ = ["selective_scan", "selective_scan_reference"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    chunk: int = 64,
) -> Tensor:
    """y [batch, T, D] with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, y_t = (C_t . h_t + D u_t) silu(z_t).

    u, delta, z: [batch, T, D], channels last (the public kernels take [batch, D, T]). delta: the step itself, positive:
    bias and softplus are the caller's. A: [D, N], negative. B, C: [batch, T, N]. D: [D].

    `chunk` tokens are scanned at once; without gradients the memory is [batch, chunk, N, D]. Inside, the numbers have
    at least float32's precision; y has u's dtype. (Gu & Dao 2023, equations 2-4, with the public code's delta B for
    the zero-order hold of B.)
    """
    kind = torch.promote_types(u.dtype, torch.float32)
    u_, delta, A, B, C = (v.to(kind) for v in (u, delta, A, B, C))
    outs, h = [], None
    for start in range(0, u.shape[1], chunk):
        part = slice(start, start + chunk)
        states = linear_scan(*_discretise(u_[:, part], delta[:, part], A, B[:, part]), h)  # [batch, chunk, N, D]
        h = states[:, -1]
        outs.append((states * C[:, part, :, None]).sum(2))  # [batch, chunk, D]
    return _output(outs[0] if len(outs) == 1 else torch.cat(outs, 1), u, D, z)


def selective_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    """The same, one token at a time."""
    kind = torch.promote_types(u.dtype, torch.float32)
    states = linear_scan_reference(*_discretise(u.to(kind), delta.to(kind), A.to(kind), B.to(kind)))
    return _output((states * C.to(kind)[..., None]).sum(2), u, D, z)


def _discretise(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta B u, both [batch, T, N, D]: the long dimension last, where memory is read in order."""
    return (delta[:, :, None] * A.mT).exp(), (delta * u)[:, :, None] * B[..., None]


def _output(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """What leaves: the states' part y [batch, T, D], the input passed by, and the gate."""
    if D is not None:
        y = y + u * D
    return (y if z is None else y * silu(z)).to(u.dtype)
