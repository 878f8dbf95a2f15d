"""DDT's sharing of its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gen.config.errors import UserError
from gen.diffusion.contracts import Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.policies.mask import Mask
from gen.samplers.caches.predictors.reuse import Reuse
from gen.samplers.caches.shared import SimilarityCalibrator, anchor_steps

__all__ = ["DDTShared", "similarity"]

ENCODER = ("encoder",)


@dataclass(frozen=True)
class DDTShared(CachePreset):
    """The encoder of DDT or DiTDH runs at one step in `interval`, and the decoder at every step (Wang et al. 2025).

    Attributes:
        interval: 1 turns it off.
        mask: True for a step that computes the encoder, one entry for each step of the loop, instead of an interval;
            `best` makes the one that loses least.
        sites: patterns of the sites to cache.
    """

    interval: int = 2
    mask: tuple[bool, ...] = ()
    sites: tuple[str, ...] = ENCODER

    def start(self, steps: int) -> SiteCacheSession:
        policy = Mask(self.mask) if self.mask else Interval(self.interval, warmup=1)
        return SiteCacheSession(steps, policy, Reuse(), self.sites)

    def best(self, similarity: Tensor) -> DDTShared:
        """Return this cache with the best mask of N // interval computed steps, at least one; similarity [N, N]."""
        return replace(self, mask=anchor_steps(similarity, max(1, len(similarity) // self.interval)))


def similarity(
    f: DenoiserLike,
    x: Tensor,
    times: Tensor | Sequence[float],
    solver: Solver,
    *,
    cond: Cond | None = None,
    noise: Noise | None = None,
    sites: Sequence[str] = ENCODER,
) -> Tensor:
    """Measure how alike the encoder's outputs of every two steps are: float64 [N, N], 1 on the diagonal.

    The mean cosine of a token's vectors, over tokens, samples, and a guide's branches, in one loop in which all is
    computed. B * N outputs are kept.

    Args:
        f: the denoiser.
        x: start of the loop, [B, ...]; 8 samples, from noise, in the paper.
        times: the loop's grid, N + 1 falling times.
        solver: of the loop.
        cond: tensors [B, ...].
        noise: for a stochastic solver.
        sites: whose outputs are compared.
    """
    steps = len(times) - 1
    calibrator = TokenSimilarity(steps, len(x))
    session = SiteCacheSession(steps, Mask(), Reuse(), sites, calibrator=calibrator)
    with torch.no_grad():
        integrate(f, x, times, solver, cond=cond, noise=noise, tap=session)
    if not calibrator.result():
        raise UserError(f"similarity: no branch computed {', '.join(sites)} at every one of the {steps} steps")
    return torch.tensor(session.report().calibration["similarity"], dtype=torch.float64).fill_diagonal_(1)


class TokenSimilarity(SimilarityCalibrator):
    """The similarity of features token by token."""

    def observe(self, context: Context, site: str, feature: Tensor) -> None:
        unit = normalize(feature[: self.rows].detach().flatten(0, -2).float(), dim=-1).cpu()  # [rows * T, width]
        self.features[context.branch, context.stage, site][context.step] = unit
