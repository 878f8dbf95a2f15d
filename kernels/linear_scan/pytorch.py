"""The linear recurrence in PyTorch: a loop over time, or pairs in logarithmic depth; differentiable without end.

Each direction is the other's gradient, and its own tangent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib.autograd import Context
from gen.kernels.linear_scan.call import LinearScanCall

__all__ = ["associative", "scan", "sequential", "sequential_reason"]


def sequential_reason(call: LinearScanCall) -> str | None:
    """Return why a loop over time is slow on this device, or None."""
    # A processor has little to gain from depth; there a loop over time, which touches memory least, is fastest.
    device = call.b.device.type
    return None if device == "cpu" else f"tensors lie on {device}, where each step of a loop is a launch"


def sequential(call: LinearScanCall) -> Tensor:
    """Compute one step after the other."""
    return _scan(*call, False)


def associative(call: LinearScanCall) -> Tensor:
    """Merge pairs of neighbours, solve the half as long sequence, and fill the positions between, in 2 log2(T) steps.

    Maps h -> a h + b compose to maps of the same kind. There are products only, never the exponential of a sum that
    could overflow. (Blelloch 1990, "Prefix Sums and Their Applications".)
    """
    return _scan(*call, True)


def scan(a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """Compute the recurrence without a start, in the way that suits the device."""
    return _scan(a, b, None, reverse, b.device.type != "cpu")


def _scan(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool, associative: bool) -> Tensor:
    if start is not None:
        first = b[:, :1] + a[:, :1] * start[:, None]  # [B, 1, ...]
        b = torch.cat([first, b[:, 1:]], 1)
    if torch.compiler.is_compiling():  # which takes no Function that has a tangent, and no loop over views
        return _pairs(a, b, reverse)
    return _LinearScan.apply(a, b, reverse, associative)  # type: ignore[no-untyped-call]


class _LinearScan(torch.autograd.Function):
    """Autograd function of the scan; a_0 is unused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, reverse: bool, associative: bool) -> Tensor:
        return _pairs(a, b, reverse) if associative else _loop(a, b, reverse)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor, Tensor, bool, bool], output: Tensor) -> None:
        a, _, *constants = inputs
        ctx.constants = tuple(constants)
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (a, h), (reverse, associative) = ctx.saved_tensors, ctx.constants
        g = _scan(a.conj(), grads[0], None, not reverse, associative)
        after, before = (g[:, :-1], h[:, 1:]) if reverse else (g[:, 1:], h[:, :-1])
        da = _first_zero(after * before.conj(), h).sum_to_size(a.shape)
        return da if a.is_complex() else da.real, g, None, None

    @staticmethod
    def jvp(ctx: Context, *tangents: Tensor | None) -> Tensor:
        (a, h), (reverse, associative) = ctx.saved_tensors, ctx.constants
        da, db = tangents[:2]
        drive = torch.zeros_like(h) if db is None else db
        if da is not None and reverse:
            drive = drive + _first_zero(da[:, 1:] * h[:, 1:], h).roll(-1, 1)
        elif da is not None:
            drive = drive + _first_zero(da[:, 1:] * h[:, :-1], h)
        return _scan(a, drive, None, reverse, associative)


def _first_zero(later: Tensor, h: Tensor) -> Tensor:
    """Return [B, T - 1, ...] with a zero before it in time."""
    return torch.cat([torch.zeros_like(h[:, :1]), later], 1)


def _loop(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    h = b.clone(memory_format=torch.contiguous_format)
    links, states = list(a.unbind(1)[1:]), list(h.unbind(1))
    if reverse:
        links, states = links[::-1], states[::-1]
    for link, before, now in zip(links, states[:-1], states[1:], strict=True):
        now.addcmul_(link, before)
    return h


def _pairs(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    if not reverse:
        return _merge(a, b)
    return _merge(a.roll(-1, 1).flip(1), b.flip(1)).flip(1)  # the first of them is a_0, unused again


def _merge(a: Tensor, b: Tensor) -> Tensor:
    length = b.shape[1]
    if length < 2:
        return b.clone()
    first, second = slice(0, length - length % 2, 2), slice(1, None, 2)
    merged = _merge(a[:, second] * a[:, first], torch.addcmul(b[:, second], a[:, second], b[:, first]))
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    h[:, second] = merged
    h[:, 0] = b[:, 0]
    between = slice(2, None, 2)
    h[:, between] = torch.addcmul(b[:, between], a[:, between], merged[:, : (length - 1) // 2])
    return h
