"""The selective scan over all tokens at once, a few rows of the batch at a time: every device and every derivative.

The states [b, T, N, D], the one large tensor, are never kept: they are scanned again for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.lib.autograd import Context
from gen.kernels.linear_scan.pytorch import scan
from gen.kernels.selective_scan.call import SelectiveScanCall

__all__ = ["gradients", "run"]

# Numbers of state [rows, T, N, D] that are at work at once, a few times over: about a quarter GiB of each.
AT_ONCE = 1 << 26


def run(call: SelectiveScanCall) -> Tensor:
    """Compute in at least float32."""
    u, delta, A, B, C = _in_scan_order(call)
    # A compiled graph takes no Function that has a tangent, and decides itself what to keep.
    function: Callable[..., Tensor] = _SelectiveScan.forward if torch.compiler.is_compiling() else _SelectiveScan.apply
    return _in_token_order(function(u, delta, A, B, C), call).to(call.u.dtype)


def gradients(call: SelectiveScanCall, dy: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B and C from that of y; differentiable in all of them and in dy."""
    u, delta, A, B, C = _in_scan_order(call)
    grads = _gradients(u, delta, A, B, C, _visited(dy.to(u.dtype), call))
    du, ddelta, dB, dC = (_in_token_order(grads[i], call) for i in (0, 1, 3, 4))
    return tuple(grad.to(v.dtype) for grad, v in zip((du, ddelta, grads[2], dB, dC), call[:5], strict=True))


def _in_scan_order(call: SelectiveScanCall) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return u, delta, A, B and C in at least float32, tokens as the scan visits them."""
    kind = torch.promote_types(call.u.dtype, torch.float32)
    u, delta, B, C = (_visited(v.to(kind), call) for v in (call.u, call.delta, call.B, call.C))
    return u, delta, call.A.to(kind), B, C


def _visited(v: Tensor, call: SelectiveScanCall) -> Tensor:
    """Return the tokens [b, T, ...] as the scan visits them."""
    v = v if call.order is None else v[:, call.order]
    return v.flip(1) if call.reverse else v


def _in_token_order(v: Tensor, call: SelectiveScanCall) -> Tensor:
    """Return the inverse of `_visited`."""
    v = v.flip(1) if call.reverse else v
    return v if call.order is None else v[:, call.order.argsort()]


class _SelectiveScan(torch.autograd.Function):
    """Autograd function of u, delta [b, T, D], A [D, N], B, C [b, T, N], from the first token to the last."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        outs = []
        for u_, delta_, B_, C_ in _rows(A, u, delta, B, C):
            h = scan(*_discretise(u_, delta_, A, B_))  # [rows, T, N, D]
            outs.append(_mix(C_, h))
        return _join(outs)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C = ctx.saved_tensors
        return _gradients(u, delta, A, B, C, grads[0])

    @staticmethod
    def jvp(ctx: Context, *tangents: Tensor | None) -> Tensor:
        u, delta, A, B, C = ctx.saved_tensors
        du, ddelta, dA, dB, dC = (
            torch.zeros_like(v) if d is None else d for v, d in zip(ctx.saved_tensors, tangents, strict=True)
        )
        a, b = _discretise(u, delta, A, B)
        h = scan(a, b)
        da = a * (ddelta[:, :, None] * A.mT + delta[:, :, None] * dA.mT)
        db = (ddelta * u + delta * du)[:, :, None] * B[..., None] + (delta * u)[:, :, None] * dB[..., None]
        dh = scan(a, db + da * pad(h, (0, 0, 0, 0, 1, -1)))
        return _mix(C, dh) + _mix(dC, h)


def _gradients(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients, tokens in the order of the scan."""
    parts = [_row_gradients(A, *row) for row in _rows(A, u, delta, B, C, dy)]  # u, delta, B, C, dy of some rows
    du, ddelta, dA, dB, dC = zip(*parts, strict=True)
    return _join(du), _join(ddelta), sum(dA[1:], dA[0]), _join(dB), _join(dC)


def _row_gradients(
    A: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    a, b = _discretise(u, delta, A, B)
    h = scan(a, b)
    dh = scan(a, dy[:, :, None] * C[..., None], reverse=True)
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
    """Return the states [rows, T, N, D] summed over N with weights [rows, T, N]."""
    return (weights[:, :, None] @ states).squeeze(2)


def _discretise(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(delta A) and delta B u, [b, T, N, D]: the long dimension last, and so in memory too (5x faster)."""
    return (delta[:, :, None] * A.mT.contiguous()).exp_(), (delta * u)[:, :, None] * B[..., None]


def _rows(A: Tensor, *batched: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the tensors [b, ...] in parts of as many rows as are worked on at once."""
    count, length = batched[0].shape[:2]
    rows = max(1, AT_ONCE // max(1, length * A.numel()))
    return [tuple(v[start : start + rows] for v in batched) for start in range(0, max(count, 1), rows)]


def _join(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows)) if len(rows) > 1 else rows[0]
