"""Knowledge distillation: one evaluation at the noise, compared with the teacher's sample of many steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser
from gen.distillers.distances import Distance
from gen.distillers.distances.square import Square
from gen.distillers.lib.pairs import PairDistillation, pair_noise
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run, Sampler

__all__ = ["Knowledge"]


@dataclass(frozen=True)
class Knowledge(PairDistillation):
    """Knowledge distillation on stored pairs (Luhman & Luhman 2021).

    The loss is distance(x0(x_t1), x), x_t1 = sigma(t1) z the sampler's own start. Only the first step is trained: a
    one-step student, whatever the path.

    Attributes:
        distance: of gen.distillers.distances; square is the published one, lpips that of DMD's regression (Yin et al.
            2024).
    """

    distance: Distance = part("distillers.distances", default=Square())

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run on its pairs; refuse a prediction that says nothing of x0 at t1."""
        start = Sampler("euler", steps=1).grid.times(run.path, 1)[0]
        run.parameterisation.solve(run.path, torch.zeros(1, 1), torch.zeros(1, 1), start)
        return super().student(run, teacher, folder)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        z, cond = pair_noise(batch, "Knowledge")
        x0 = self.one_step(roles["net"], z, cond)
        logs = {"sample_mean": x0.detach().mean(), "sample_std": x0.detach().std()}
        yield "net", self.distance(x0, batch.x).mean(), logs

    def one_step(self, f: Denoiser, z: Tensor, cond: Cond) -> Tensor:
        """Return samples [B, ...] by one evaluation at unit noise z [B, ...]."""
        t = torch.tensor(f.path.t1, dtype=torch.float64, device=z.device)
        return f(f.path.start(z, t), t, cond).x0
