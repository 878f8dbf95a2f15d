"""The one seam into a network: every block calls `h = h + (f(h) if tap is None else tap("blocks.3.attn", f, h))`.

Feature alignment, caches, layer skipping, pruning scores and statistics are taps; nothing ever patches `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Chain", "Compute", "Record", "Skip", "Tap"]

Compute = Callable[[Tensor], Tensor]


class Tap(Protocol):
    """Called at a named site with the computation of that site and its input; returns the site's output."""

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor: ...


@dataclass
class Record:
    """Computes, and keeps the output of every site that matches one of the patterns ("blocks.*.mlp")."""

    patterns: tuple[str, ...] = ("*",)
    features: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        out = compute(h)
        if any(fnmatchcase(site, pattern) for pattern in self.patterns):
            self.features[site] = out
        return out


@dataclass(frozen=True)
class Skip:
    """Leaves out the sites that match: their residual is zero (layer skipping, skip-layer guidance)."""

    patterns: tuple[str, ...]

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        skipped = any(fnmatchcase(site, pattern) for pattern in self.patterns)
        return torch.zeros_like(h) if skipped else compute(h)


@dataclass(frozen=True)
class Chain:
    """Several taps as one; the first is the outermost."""

    taps: tuple[Tap, ...]

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        for tap in reversed(self.taps):
            compute = _through(tap, site, compute)
        return compute(h)


def _through(tap: Tap, site: str, compute: Compute) -> Compute:
    return lambda h: tap(site, compute, h)
