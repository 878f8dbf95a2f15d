"""Sharing by statistical dynamic programming."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.cache_report import CacheReport
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.mask import Mask
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["SharedSteps", "SimilarityCalibrator", "anchor_steps", "sharing_loss"]


@dataclass(frozen=True)
class SharedSteps(CachePreset):
    """Uses features again at the steps where that loses least, as DDT shares its encoder (Wang et al. 2025).

    Without a mask a loop calibrates: it computes everything and compares the features of all steps;
    `calibrated(session.report())` is then the cache whose mask is the best of all with the same number of computed
    steps, max(1, round(keep N)) of N.

    Attributes:
        mask: True for a step to compute, one entry for each step of the loop; () calibrates.
        keep: the share of steps to compute, in (0, 1]; 1 turns it off.
        rows: of the batch, whose features are compared.
        sites: patterns of the sites to cache.
    """

    mask: tuple[bool, ...] = ()
    keep: float = 0.5
    rows: int = 8
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        check_fields(self, keep="(0, 1]", rows="[1, inf)")
        super().__post_init__()

    def start(self, steps: int) -> SiteCacheSession:
        calibrator = None if self.mask else SimilarityCalibrator(steps, self.rows)
        return SiteCacheSession(steps, Mask(self.mask), Reuse(), self.sites, calibrator=calibrator)

    def calibrated(self, report: CacheReport) -> SharedSteps:
        """Return this cache with the best mask for the similarities that a loop without one has measured."""
        if "similarity" not in report.calibration:
            raise UserError("SharedSteps: this report measured no similarity; calibrate with a loop without a mask")
        similarity = torch.tensor(report.calibration["similarity"], dtype=torch.float64)
        return replace(self, mask=anchor_steps(similarity, max(1, round(self.keep * len(similarity)))))


@dataclass
class SimilarityCalibrator:
    """The mean cosine similarity of a feature between every two steps, [N, N], over rows, sites and branches.

    Attributes:
        steps: N, of the loop.
        rows: of the batch, that are compared.
        features: unit vectors so far, by branch, stage and site, and by step.
    """

    steps: int
    rows: int
    features: dict[tuple[str, int, str], dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))

    def observe(self, context: Context, site: str, feature: Tensor) -> None:
        unit = torch.nn.functional.normalize(feature[: self.rows].detach().flatten(1).float(), dim=1).cpu()
        self.features[context.branch, context.stage, site][context.step] = unit

    def result(self) -> dict[str, Any]:
        """Return the similarity; nothing until some branch has been observed at every step."""
        whole = [f for f in self.features.values() if len(f) == self.steps]
        if not whole:
            return {}
        stacks = [torch.stack([f[step] for step in range(self.steps)]).double() for f in whole]  # [N, rows, D]
        each = [torch.einsum("nrd,mrd->nm", s, s) / s.shape[1] for s in stacks]
        return {"similarity": torch.stack(each).mean(0).tolist()}


def anchor_steps(similarity: Tensor, count: int) -> tuple[bool, ...]:
    """Choose the steps, the first among them, whose features serve all N with the least loss; a mask [N].

    Dynamic programming over the last anchor, O(count N^2); equals a search of all masks.

    Args:
        similarity: of features between every two steps, [N, N].
        count: how many steps to compute, 1 .. N.
    """
    n = len(similarity)
    if not 1 <= count <= n:
        raise UserError(f"anchor_steps: {count} of {n} steps; it must be 1 .. {n}")
    loss = 1 - similarity.double()
    sums = torch.cat([loss.new_zeros(1, n), loss.cumsum(0)])  # [N + 1, anchor]: sums[i, j] = sum of loss[:i, j]
    start = torch.arange(n)
    segment = sums.T - sums[start, start][:, None]  # [anchor j, end i]: steps j .. i - 1 served by j
    segment = segment.masked_fill(torch.arange(n + 1) <= start[:, None], torch.inf)
    best = torch.full((n + 1,), torch.inf, dtype=torch.float64)
    best[0] = 0  # no step served, by no anchor
    choices = []
    for _ in range(count):
        best, choice = (best[:n, None] + segment).min(0)
        choices.append(choice)
    mask, end = [False] * n, n
    for choice in reversed(choices):
        end = int(choice[end])
        mask[end] = True
    return tuple(mask)


def sharing_loss(similarity: Tensor, mask: tuple[bool, ...]) -> float:
    """Sum 1 - similarity to the last computed step over all steps.

    Args:
        similarity: of features between every two steps, [N, N].
        mask: True for the computed steps, [N].
    """
    total, anchor = 0.0, 0
    for step, computed in enumerate(mask):
        anchor = step if computed else anchor
        total += 1 - float(similarity[step, anchor])
    return total
