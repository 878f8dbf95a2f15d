"""The one seam into a network: every block calls `h = h + (f(h) if tap is None else tap("blocks.3.attn", f, h))`.

Feature alignment, caches, layer skipping, pruning scores and statistics are taps; nothing ever patches `forward`.
A tap that depends on where in a sampling loop it is called says so by being a ContextualTap: it is told, it never
counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Chain", "Compute", "Context", "ContextualTap", "Record", "Skip", "Tap", "call_site", "with_branch"]

Compute = Callable[[Tensor], Tensor]


class Tap(Protocol):
    """Called at a named site with the computation of that site and its input; returns the site's output."""

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor: ...


def call_site(tap: Tap | None, site: str, compute: Compute, h: Tensor) -> Tensor:
    """Return compute(h), or what the tap returns in its place: how a network calls a named site.

    Args:
        tap: the tap that the network was called with, or None.
        site: name of the site, such as "blocks.3.attn".
        compute: the computation of the site.
        h: its input.
    """
    return compute(h) if tap is None else tap(site, compute, h)


@dataclass(frozen=True)
class Context:
    """Which evaluation of a sampling loop this is: step of steps, the solver's stage in it, time, the guide's branch.

    Two evaluations of one loop with the same context are the same evaluation.
    """

    step: int
    steps: int
    stage: int
    t: float
    branch: str = "main"


@runtime_checkable
class ContextualTap(Protocol):
    """A tap with a place: `at(context)` is the tap to use for one evaluation there."""

    def bind(self, context: Context) -> Tap: ...


@dataclass(frozen=True)
class BoundTap:
    """A contextual tap at a context; guides move it to another branch."""

    tap: ContextualTap
    context: Context

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return self.tap.bind(self.context)(site, compute, h)


def with_branch(tap: Tap | None, name: str) -> Tap | None:
    """The tap for another branch of the same evaluation: what a guide hands to its second network call."""
    if isinstance(tap, BoundTap):
        return BoundTap(tap.tap, replace(tap.context, branch=name))
    return Chain(tuple(with_branch(t, name) or t for t in tap.taps)) if isinstance(tap, Chain) else tap


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
