"""ECT: a diffusion model tuned, little by little, into a consistency model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath
from gen.diffusion.times import LogNormal, Times
from gen.distillers.lib.consistency import (
    check_boundary,
    consistency_losses,
    ect_next_time,
    output_stats,
    sigma_of_t,
)
from gen.distillers.lib.times import draw_times, mean_at_fixed_times
from gen.distillers.lib.velocity import check_roles
from gen.samplers.grids.coarse import Coarse
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["ECT"]


@dataclass(frozen=True)
class ECT(Distiller):
    """Easy consistency tuning (Geng et al. 2024).

    The loss is |f(x_t, t) - sg f(x_r, r)| / (sigma_t - sigma_r), sigma_r ever closer to sigma_t. f is the x0 of the
    prediction, both points of the same data, noise and dropout; sigma is the noise level sigma / alpha, EDM's t, so
    that each path has the published schedule: sigma_r = max(0, 1 - gap^(stage + 1) (1 + sharpness sigmoid(-slope
    sigma_t))) sigma_t. At first r = 0 up to sigma 1.95, and that is denoising; hence the start from a denoiser, though
    none is needed. The loss grows from stage to stage and says nothing of quality.

    Attributes:
        times: density of t; the code's for CIFAR-10.
        gap: 1 / q, in (0, 1); the code's.
        sharpness, slope: k and b, the first at least 0; the code's.
        double_every: updates of a stage.
        stages: how many there are; the last one stays.
        huber: c / sqrt(d) of the pseudo-Huber distance, 0 for the plain norm; the paper's 0.06 for ImageNet-64 is
            0.00054. Data of few numbers want a large one (see pseudo_huber).
        class_dropout: probability that a condition is replaced by the null one.
    """

    times: Times = part("diffusion.times", default=LogNormal(-1.1, 2.0))
    gap: float = 0.5
    sharpness: float = 8.0
    slope: float = 1.0
    double_every: int = 1250
    stages: int = 8
    huber: float = 0.0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, gap="(0, 1)", sharpness="[0, inf)", double_every="[1, inf)", stages="[1, inf)")
        check_fields(self, huber="[0, inf)", class_dropout="[0, 1]")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "ECT")
        return replace(run, objective=self, teacher=None, init=str(teacher), sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from sigma 80, and more at times of the consistency models' grid."""
        return Sampler("renoise", steps=1, grid=Coarse(of=40))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("ECT", net, teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, stage = roles["net"], self.stage(batch.step)
        check_boundary(f.path, f.parameterisation, "ECT")
        t = draw_times(self.times, batch, "t", f.path)
        losses, x0 = self.losses(f, batch, drop_condition(f, batch, self.class_dropout), t, stage)
        ratio = sigma_of_t(f.path, self.next_time(f.path, t, stage)) / sigma_of_t(f.path, t)
        logs = {"stage": torch.tensor(float(stage), device=t.device), "ratio": ratio.mean()}
        yield "net", losses.mean(), {**logs, **output_stats(x0)}

    def stage(self, update: int) -> int:
        """Return 0, 1, ..., stages - 1."""
        return min(update // self.double_every, self.stages - 1)

    def next_time(self, path: NoisePath, t: Tensor, stage: int) -> Tensor:
        """Return r [B], below t [B]."""
        return ect_next_time(path, t, self.gap ** (stage + 1), self.sharpness, self.slope)

    def losses(self, f: DenoiserLike, batch: Batch, cond: Cond, t: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample [B] at times t [B], and f(x_t, t)."""
        return consistency_losses(f, f, batch, cond, t, self.next_time(f.path, t, stage), self.huber)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss of the last stage at 8 fixed times."""
        f, last = roles["net"], self.stages - 1
        return mean_at_fixed_times(self.times, f.path, batch, lambda t: self.losses(f, batch, batch.cond, t, last)[0])
