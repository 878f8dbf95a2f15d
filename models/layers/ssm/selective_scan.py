"""The selective scan: a diagonal state space whose step, input and output maps depend on the token (Mamba)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

from gen.models.layers.ssm.scan import linear_scan, linear_scan_reference

__all__ = ["selective_scan", "selective_scan_reference"]

# Numbers of state [rows, T, N, D] that are at work at once, a few times over: about a quarter GiB of each.
AT_ONCE = 1 << 26


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    """y [batch, T, D] with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, y_t = (C_t . h_t + D u_t) silu(z_t).

    u, delta, z: [batch, T, D], channels last (the public kernels take [batch, D, T]). delta: the step itself, positive:
    bias and softplus are the caller's. A: [D, N], negative. B, C: [batch, T, N]. D: [D].

    The states [batch, T, N, D], the one large thing, are never kept: a few rows of the batch at a time are scanned, and
    scanned again for the gradient, as the public kernel does. Differentiable any number of times, in both modes.
    Inside, the numbers have at least float32's precision; y has u's dtype. (Gu & Dao 2023, equations 2-4, with the
    public code's delta B for the zero-order hold of B.)
    """
    kind = torch.promote_types(u.dtype, torch.float32)
    y = _Selective.apply(*(v.to(kind) for v in (u, delta, A, B, C)))  # type: ignore[no-untyped-call]
    return _output(y, u, D, z)


def selective_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    """The same, one token at a time."""
    kind = torch.promote_types(u.dtype, torch.float32)
    states = linear_scan_reference(*_discretise(*(v.to(kind) for v in (u, delta, A, B))))
    return _output((states * C.to(kind)[..., None]).sum(2), u, D, z)


class _Selective(torch.autograd.Function):
    """y_t = C_t . h_t, from u, delta [batch, T, D], A [D, N], B, C [batch, T, N]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        outs = []
        for u_, delta_, B_, C_ in _rows(A, u, delta, B, C):
            h = linear_scan(*_discretise(u_, delta_, A, B_))  # [rows, T, N, D]
            outs.append(_mix(C_, h))
        return _join(outs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C = ctx.saved_tensors
        parts = [_gradients(A, *row) for row in _rows(A, u, delta, B, C, grads[0])]
        du, ddelta, dA, dB, dC = zip(*parts, strict=True)
        return _join(du), _join(ddelta), sum(dA[1:], dA[0]), _join(dB), _join(dC)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        u, delta, A, B, C = ctx.saved_tensors
        du, ddelta, dA, dB, dC = (
            torch.zeros_like(v) if d is None else d for v, d in zip(ctx.saved_tensors, tangents, strict=True)
        )
        a, b = _discretise(u, delta, A, B)
        h = linear_scan(a, b)
        da = a * (ddelta[:, :, None] * A.mT + delta[:, :, None] * dA.mT)
        db = (ddelta * u + delta * du)[:, :, None] * B[..., None] + (delta * u)[:, :, None] * dB[..., None]
        dh = linear_scan(a, db + da * pad(h, (0, 0, 0, 0, 1, -1)))
        return _mix(C, dh) + _mix(dC, h)


def _gradients(
    A: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dy [rows, T, D] carried back to u, delta, A, B and C."""
    a, b = _discretise(u, delta, A, B)
    h = linear_scan(a, b)
    dh = linear_scan(a, dy[:, :, None] * C[..., None], reverse=True)
    from_b = _mix(B, dh)  # to delta u
    rate = (dh[:, 1:] * a[:, 1:]).mul_(h[:, :-1])  # to delta A [rows, T - 1, N, D]: the first token has no past
    return (
        from_b * delta,
        from_b * u + pad((rate * A.mT.contiguous()).sum(2), (0, 0, 1, 0)),
        (rate * delta[:, 1:, None]).sum((0, 1)).mT,
        (dh * (delta * u)[:, :, None]).sum(3),
        (h * dy[:, :, None]).sum(3),
    )


def _mix(weights: Tensor, states: Tensor) -> Tensor:
    """The states [rows, T, N, D] summed over N with weights [rows, T, N]."""
    return (weights[:, :, None] @ states).squeeze(2)


def _discretise(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta B u, both [batch, T, N, D]: the long dimension last, and so in memory too (5x faster)."""
    return (delta[:, :, None] * A.mT.contiguous()).exp_(), (delta * u)[:, :, None] * B[..., None]


def _rows(A: Tensor, *batched: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors [batch, ...] in parts of as many rows as are worked on at once."""
    count, length = batched[0].shape[:2]
    rows = max(1, AT_ONCE // (length * A.numel()))
    return [tuple(v[start : start + rows] for v in batched) for start in range(0, count, rows)]


def _join(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows)) if len(rows) > 1 else rows[0]


def _output(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """What leaves: the states' part y [batch, T, D], the input passed by, and the gate."""
    if D is not None:
        y = y + u * D
    return (y if z is None else y * silu(z)).to(u.dtype)
