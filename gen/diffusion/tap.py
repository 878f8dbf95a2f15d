"""Taps, the one seam into a network: every block calls `h = h + call_site(tap, "blocks.3.attn", f, h)`.

Feature alignment, caches, layer skipping, pruning scores and statistics are taps; nothing ever patches `forward`.
A tap that depends on the evaluation of a sampling loop in which it is called is a ContextualTap: the loop binds it to
each evaluation's context, and it never counts calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "Chain", "Compute", "Context", "ContextualTap", "FeatureRecorder", "PartialNetwork", "SiteCall", "Skip", "Tap",
    "begin_site", "call_site", "evaluate_network", "run_site_call", "with_branch",
]  # fmt: skip

Compute = Callable[[Tensor], Tensor]
SiteCall = Generator[Tensor, Tensor, Tensor]  # yields the input to compute, is sent the output, returns its stand-in


class Tap(Protocol):
    """An observer of a network's named sites, which may replace what they compute.

    Sites that residuals come from, whose output is added to their input: "blocks.3", inside it "blocks.3.attn" and
    "blocks.3.mlp", and inside these the bare modules before their gate, "blocks.3.attn.raw". Sites of whole values:
    "time", "trunk" (all blocks), "hidden.3" (one block and its skip connection), "final". A network may have others, or
    none; it calls each at most once in an evaluation, the outer ones around the inner ones.
    """

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        """Return the output of a site.

        Args:
            site: its name.
            compute: its computation, a function of h; a tap may call it, or not, or on another input.
            h: its input, [B, ...], often tokens [B, T, width].

        Returns:
            compute(h), or what is to stand for it: of its shape, dtype and device.
        """
        ...


def call_site(tap: Tap | None, site: str, compute: Compute, h: Tensor) -> Tensor:
    """Return compute(h), or what the tap returns instead: how a network calls a named site.

    Args:
        tap: the tap that the network was called with, or None.
        site: name of the site, such as "blocks.3.attn".
        compute: the computation of the site.
        h: its input.
    """
    return compute(h) if tap is None else tap(site, compute, h)


def begin_site(tap: Tap, site: str, h: Tensor) -> SiteCall:
    """Begin a site whose computation lies between two hooks of a foreign network, so that no function computes it.

    Only taps with a method `stepwise(site, h)`, which returns the SiteCall, can replace such a site; all others do not
    meet it.

    Args:
        tap: of the evaluation.
        site: its name.
        h: its input.

    Returns:
        A generator: `next` gives the input at which the site is to be computed, `send(output)` ends with StopIteration
        of what stands for the output; either at once where nothing need be computed.
    """
    stepwise = getattr(tap, "stepwise", None)
    call: SiteCall = _unmet(h) if stepwise is None else stepwise(site, h)
    return call


def _unmet(h: Tensor) -> SiteCall:
    return (yield h)


def run_site_call(call: SiteCall, compute: Compute) -> Tensor:
    """Return what stands for a site's output, computed by a function.

    Args:
        call: that `begin_site` returned.
        compute: the computation of the site.
    """
    try:
        h = next(call)
        while True:
            h = call.send(compute(h))
    except StopIteration as end:
        out: Tensor = end.value
        return out


@dataclass(frozen=True)
class Context:
    """One evaluation of a network in a sampling loop; two with the same context are the same evaluation.

    Attributes:
        step, steps: index of the step, from 0, and the number of steps.
        stage: index of the evaluation within the solver's step.
        t: time of the evaluation.
        branch: "main", or the name of a guide's further evaluation, such as "uncond".
        lam: half log-SNR of x at t, on the path in use; NaN where a loop does not say it.
    """

    step: int
    steps: int
    stage: int
    t: float
    branch: str = "main"
    lam: float = math.nan


@runtime_checkable
class ContextualTap(Protocol):
    """A tap that must know step, stage and branch of an evaluation, such as a cache's session."""

    def bind(self, context: Context) -> Tap:
        """Return the tap of one evaluation; the same one whenever the context is the same.

        Args:
            context: of the evaluation.
        """
        ...


class PartialNetwork(Protocol):
    """One evaluation of a network, which may be called for some rows of the batch at a time."""

    def __call__(self, tap: Tap | None, rows: Tensor | None) -> Tensor:
        """Return the output of the rows.

        Args:
            tap: for this call.
            rows: indices into the batch, int64; None for all of it.
        """
        ...


def evaluate_network(tap: Tap | None, network: PartialNetwork) -> Tensor:
    """Evaluate a network under a tap: all rows at once, or in the parts that the tap chooses.

    A contextual tap chooses if it has `evaluate(context, network, whole)`, `whole` being the tap for all rows.

    Args:
        tap: as of `Denoiser`.
        network: the evaluation.
    """
    evaluate = getattr(tap.tap, "evaluate", None) if isinstance(tap, BoundTap) else None
    if evaluate is None or not isinstance(tap, BoundTap):
        return network(tap, None)
    out: Tensor = evaluate(tap.context, network, tap)
    return out


@dataclass(frozen=True)
class BoundTap:
    """A contextual tap, bound to a context when a network first calls it."""

    tap: ContextualTap
    context: Context

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return self.tap.bind(self.context)(site, compute, h)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        return begin_site(self.tap.bind(self.context), site, h)


def with_branch(tap: Tap | None, name: str) -> Tap | None:
    """Return the tap for another branch of the same evaluation, for a guide's second network call.

    Args:
        tap: of the evaluation; only contextual ones, bound, change.
        name: of the branch.
    """
    if isinstance(tap, BoundTap):
        return BoundTap(tap.tap, replace(tap.context, branch=name))
    return Chain(tuple(with_branch(t, name) or t for t in tap.taps)) if isinstance(tap, Chain) else tap


@dataclass
class FeatureRecorder:
    """A tap that keeps the outputs of sites.

    Attributes:
        patterns: of the sites ("blocks.*.mlp").
        features: the outputs, by site.
    """

    patterns: tuple[str, ...] = ("*",)
    features: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return run_site_call(self.stepwise(site, h), compute)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        out = yield h
        if any(fnmatchcase(site, pattern) for pattern in self.patterns):
            self.features[site] = out
        return out


@dataclass(frozen=True)
class Skip:
    """A tap that leaves out sites: their residual is zero (layer skipping, skip-layer guidance).

    Attributes:
        patterns: of the sites.
    """

    patterns: tuple[str, ...]

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return run_site_call(self.stepwise(site, h), compute)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        skipped = any(fnmatchcase(site, pattern) for pattern in self.patterns)
        return torch.zeros_like(h) if skipped else (yield h)


@dataclass(frozen=True)
class Chain:
    """Several taps as one.

    Attributes:
        taps: the first is the outermost.
    """

    taps: tuple[Tap, ...]

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        for tap in reversed(self.taps):
            compute = _through(tap, site, compute)
        return compute(h)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        return _nested(self.taps, site, h)


def _through(tap: Tap, site: str, compute: Compute) -> Compute:
    return lambda h: tap(site, compute, h)


def _nested(taps: tuple[Tap, ...], site: str, h: Tensor) -> SiteCall:
    """The call of a site under several taps, the first outermost."""
    if not taps:
        return (yield h)
    outer = begin_site(taps[0], site, h)
    try:
        h = next(outer)
        while True:
            out = yield from _nested(taps[1:], site, h)
            h = outer.send(out)
    except StopIteration as end:
        result: Tensor = end.value
        return result
