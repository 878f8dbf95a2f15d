"""The linear recurrence in PyTorch: a loop over time, or pairs in logarithmic depth; differentiable without end.

Each direction is the other's gradient, and its own tangent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["anything", "in_order", "in_order_refuses", "in_pairs", "scan"]


def anything(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool) -> str | None:
    return None


def in_order_refuses(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool) -> str | None:
    # A processor has little to gain from depth; there a loop over time, which touches memory least, is fastest.
    return None if b.device.type == "cpu" else f"tensors lie on {b.device.type}, where each step of a loop is a launch"


def in_order(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool) -> Tensor:
    return _scanned(a, b, start, reverse, False)


def in_pairs(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool) -> Tensor:
    """Maps h -> a h + b compose to maps of the same kind, so pairs of neighbours are merged, the half as long sequence
    is solved, and the places between follow from it: 2 log2(T) steps, and products only, never the exponential of a sum
    that could overflow (Blelloch 1990, "Prefix Sums and Their Applications").
    """
    return _scanned(a, b, start, reverse, True)


def scan(a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """The recurrence without a start, in the way that suits the device."""
    return _scanned(a, b, None, reverse, b.device.type != "cpu")


def _scanned(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool, paired: bool) -> Tensor:
    if start is not None:
        first = b[:, :1] + a[:, :1] * start[:, None]  # [B, 1, ...]
        b = torch.cat([first, b[:, 1:]], 1)
    if torch.compiler.is_compiling():  # which takes no Function that has a tangent, and no loop over views
        return _pairs(a, b, reverse)
    return _Scan.apply(a, b, reverse, paired)  # type: ignore[no-untyped-call]


class _Scan(torch.autograd.Function):
    """The scan, with a_0 unused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, reverse: bool, paired: bool) -> Tensor:
        return _pairs(a, b, reverse) if paired else _loop(a, b, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool, bool], output: Tensor) -> None:
        a, _, ctx.reverse, ctx.paired = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, h = ctx.saved_tensors
        g = _scanned(a.conj(), grads[0], None, not ctx.reverse, ctx.paired)
        after, before = (g[:, :-1], h[:, 1:]) if ctx.reverse else (g[:, 1:], h[:, :-1])
        da = _first_zero(after * before.conj(), h).sum_to_size(a.shape)
        return da if a.is_complex() else da.real, g, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        a, h = ctx.saved_tensors
        da, db = tangents[:2]
        drive = torch.zeros_like(h) if db is None else db
        if da is not None and ctx.reverse:
            drive = drive + _first_zero(da[:, 1:] * h[:, 1:], h).roll(-1, 1)
        elif da is not None:
            drive = drive + _first_zero(da[:, 1:] * h[:, :-1], h)
        return _scanned(a, drive, None, ctx.reverse, ctx.paired)


def _first_zero(later: Tensor, h: Tensor) -> Tensor:
    """[B, T - 1, ...], with a zero before it in time."""
    return torch.cat([torch.zeros_like(h[:, :1]), later], 1)


def _loop(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    h = b.clone(memory_format=torch.contiguous_format)
    links, places = list(a.unbind(1)[1:]), list(h.unbind(1))
    if reverse:
        links, places = links[::-1], places[::-1]
    for link, before, now in zip(links, places[:-1], places[1:], strict=True):
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
