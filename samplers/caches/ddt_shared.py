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
from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.policies.mask import Mask
from gen.samplers.caches.predictors.reuse import Reuse
from gen.samplers.caches.shared import Similarity, anchors

__all__ = ["DDTShared", "similarity"]

ENCODER = ("encoder",)


@dataclass(frozen=True)
class DDTShared:
    """The encoder of DDT or DiTDH runs at one step in `interval`, and the decoder at every step (Wang et al. 2025).

    A mask names the steps instead, one entry for each of the loop; `best` makes the one that loses least. interval = 1
    turns it off.
    """

    interval: int = 2
    mask: tuple[bool, ...] = ()
    sites: tuple[str, ...] = ENCODER

    def __post_init__(self) -> None:
        self.start(max(len(self.mask), 1))

    def start(self, steps: int) -> Run:
        policy = Mask(self.mask) if self.mask else Interval(self.interval, warmup=1)
        return Run(steps, policy, Reuse(), self.sites)

    def best(self, similarity: Tensor) -> DDTShared:
        """This cache with the best mask that has N // interval computed steps, at least one; similarity [N, N]."""
        return replace(self, mask=anchors(similarity, max(1, len(similarity) // self.interval)))


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
    """How alike the encoder's outputs of every two steps are: float64 [N, N], 1 on the diagonal.

    The mean cosine of a token's vectors, over tokens, samples, and a guide's branches, in one walk in which all is
    computed, of samples from x [B, ...] at times[0]; 8 of them, from noise, in the paper. B * N outputs are kept.
    """
    steps = len(times) - 1
    run = Run(steps, Mask(), Reuse(), sites, study=Tokens(steps, len(x)))
    with torch.no_grad():
        integrate(f, x, times, solver, cond=cond, noise=noise, tap=run)
    measured = run.report().measured
    if not measured:
        raise UserError(f"similarity: no branch computed {', '.join(sites)} at every one of the {steps} steps")
    return torch.tensor(measured["similarity"], dtype=torch.float64).fill_diagonal_(1)


class Tokens(Similarity):
    """Compares token by token."""

    def see(self, context: Context, site: str, feature: Tensor) -> None:
        unit = normalize(feature[: self.rows].detach().flatten(0, -2).float(), dim=-1).cpu()  # [rows * T, width]
        self.features[context.branch, context.stage, site][context.step] = unit
