"""What every family of denoisers does alike: sizes by name, checks of what a network is given, the null condition.

`spec` is the family's dataclass; it has the fields size, channels and classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.diffusion.tap import Tap

__all__ = ["MODULATION", "at_least", "check", "conditioning", "labels", "null", "preset"]

MODULATION = "modulation"  # a key of cond: see `conditioning`


def preset(owner: Any, table: Mapping[str, Mapping[str, Any]], name: str, changes: Mapping[str, Any]) -> Any:
    """The spec of one row of `table`, with fields changed; a row "DiT-XL/2" is also called "XL/2"."""
    short = {full.rpartition("-")[2]: full for full in reversed(list(table))}  # of two alike the first wins
    full = name if name in table else short.get(name, name)
    if full not in table:
        raise UserError(f"unknown preset {name!r} of {owner.__name__}. {nearest(full, table)}")
    return replace(owner(**table[full]), **changes)


def at_least(spec: Any, **lowest: int) -> None:
    """Raises UserError for a field below its lowest value."""
    for name, low in lowest.items():
        if getattr(spec, name) < low:
            hint = "; give 0 for data without labels" if name == "classes" else f"; it must be at least {low}"
            raise UserError(f"{type(spec).__name__}.{name} is {getattr(spec, name)}{hint}")


def check(spec: Any, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], s: Tensor | None = None) -> None:
    """Raises UserError unless x [B, C, H, W], t [B] and cond fit. Shapes and kinds: values would wait for the device.

    s: the target time that was given, if the network takes none.
    """
    family = type(spec).__name__
    expected = (spec.channels, spec.size, spec.size)
    if tuple(x.shape[1:]) != expected:
        raise UserError(f"x has shape {list(x.shape)}; this {family} takes [B, {', '.join(map(str, expected))}]")
    if t.shape != x.shape[:1]:
        raise UserError(f"t has shape {list(t.shape)}; for this x it must be [{len(x)}]")
    if s is not None:
        raise UserError(f"a target time s was given, but this {family} is no flow map and takes only t")
    if not spec.classes:
        return
    labels(spec, cond, len(x))


def labels(spec: Any, cond: Mapping[str, Tensor], rows: int | None = None) -> Tensor:
    """cond["y"], int64 [B]; UserError without it, and for other than `rows` of them."""
    if "y" not in cond:
        given = ", ".join(cond) or "nothing"
        raise UserError(f"this {type(spec).__name__} has {spec.classes} classes and needs cond['y']; given: {given}")
    y = cond["y"]
    if y.ndim != 1 or y.dtype not in (torch.int64, torch.int32) or rows not in (None, len(y)):
        many = "B" if rows is None else rows
        raise UserError(f"cond['y'] is {y.dtype} {list(y.shape)}; for this x it must be torch.int64 [{many}]")
    return y


def conditioning(net: Any, t: Tensor, cond: Mapping[str, Tensor], tap: Tap | None) -> Tensor:
    """What a network's adaLN modules are given: the embeddings of t [B] and of the class added, [B, width].

    A cond with "modulation" [B, ...] has it in their place: the output of all those modules, computed before
    (gen.models.layers.modulations).
    """
    if MODULATION in cond:
        return cond[MODULATION]
    c: Tensor = net.t_embedder(t) if tap is None else tap("time", net.t_embedder, t)
    return c if net.y_embedder is None else c + net.y_embedder(labels(net.spec, cond, len(t)))


def null(spec: Any, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The condition that stands for "no class": the label after the last."""
    if not spec.classes:
        return dict(cond)
    return {**cond, "y": torch.full_like(labels(spec, cond), spec.classes)}
