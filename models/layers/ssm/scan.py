"""The first-order linear recurrence h_t = a_t h_(t-1) + b_t, elementwise, in logarithmic depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["linear_scan", "linear_scan_reference"]


def linear_scan(a: Tensor, b: Tensor, start: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """h [B, T, ...] with h_t = a_t h_(t-1) + b_t over dimension 1; real or complex.

    a: [B, T, ...], or 1 in place of any size but T's. b: [B, T, ...]. start: h_(-1) [B, ...]; zero without it.
    reverse: h_t = a_(t+1) h_(t+1) + b_t instead, from the last to the first, which is how gradients flow.

    Maps h -> a h + b compose to maps of the same kind, so pairs of neighbours are merged, the half as long sequence is
    solved, and the places between follow from it: 2 log2(T) steps, and products only, never the exponential of a sum
    that could overflow (Blelloch 1990, "Prefix Sums and Their Applications"). Differentiable any number of times, in
    both modes.
    """
    if start is not None and reverse:
        raise ValueError("a scan from the last to the first takes no start")
    if start is not None:
        first = b[:, :1] + a[:, :1] * start[:, None]  # [B, 1, ...]
        b = torch.cat([first, b[:, 1:]], 1)
    out: Tensor = _Scan.apply(a, b, reverse)  # type: ignore[no-untyped-call]
    return out


def linear_scan_reference(a: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
    """The same, one step at a time, as the equation stands."""
    h = torch.zeros_like(b[:, 0]) if start is None else start
    states = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


class _Scan(torch.autograd.Function):
    """The scan, with a_0 unused.

    Each direction is the other's gradient, and its own tangent.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
        # A processor has little to gain from depth; there a loop over time, which touches memory least, is fastest.
        if b.device.type == "cpu":
            return _in_order(a, b, reverse)
        if not reverse:
            return _in_pairs(a, b)
        return _in_pairs(a.roll(-1, 1).flip(1), b.flip(1)).flip(1)  # the first of them is a_0, unused again

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        a, _, ctx.reverse = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        a, h = ctx.saved_tensors
        g = linear_scan(a.conj(), grads[0], reverse=not ctx.reverse)
        after, before = (g[:, :-1], h[:, 1:]) if ctx.reverse else (g[:, 1:], h[:, :-1])
        return _first_zero(after * before.conj(), h).sum_to_size(a.shape), g, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        a, h = ctx.saved_tensors
        da, db = tangents[:2]
        drive = torch.zeros_like(h) if db is None else db
        if da is not None and ctx.reverse:
            drive = drive + _first_zero(da[:, 1:] * h[:, 1:], h).roll(-1, 1)
        elif da is not None:
            drive = drive + _first_zero(da[:, 1:] * h[:, :-1], h)
        return linear_scan(a, drive, reverse=ctx.reverse)


def _first_zero(later: Tensor, h: Tensor) -> Tensor:
    """[B, T - 1, ...], with a zero before it in time."""
    return torch.cat([torch.zeros_like(h[:, :1]), later], 1)


def _in_order(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    h = b.clone(memory_format=torch.contiguous_format)
    links, places = list(a.unbind(1)[1:]), list(h.unbind(1))
    if reverse:
        links, places = links[::-1], places[::-1]
    for link, before, now in zip(links, places[:-1], places[1:], strict=True):
        now.addcmul_(link, before)
    return h


def _in_pairs(a: Tensor, b: Tensor) -> Tensor:
    length = b.shape[1]
    if length == 1:
        return b.clone()
    first, second = slice(0, length - length % 2, 2), slice(1, None, 2)
    merged = _in_pairs(a[:, second] * a[:, first], torch.addcmul(b[:, second], a[:, second], b[:, first]))
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    h[:, second] = merged
    h[:, 0] = b[:, 0]
    between = slice(2, None, 2)
    h[:, between] = torch.addcmul(b[:, between], a[:, between], merged[:, : (length - 1) // 2])
    return h
