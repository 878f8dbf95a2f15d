"""ECT: a diffusion model tuned, little by little, into a consistency model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath
from gen.diffusion.times import LogNormal
from gen.distillers.lib.consistency import check_boundary, closer, few_steps, pair_losses, seen
from gen.distillers.lib.velocity import check_roles
from gen.samplers.grids.karras import Karras
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["ECT"]


@dataclass(frozen=True)
class ECT:
    """|f(x_t, t) - sg f(x_r, r)| / (sigma_t - sigma_r) with sigma_r ever closer to sigma_t (Geng et al. 2024).

    f is the x0 of the prediction, both points of the same data, noise and dropout; sigma is the level sigma / alpha,
    EDM's t, so that each path has the published schedule: sigma_r = max(0, 1 - gap^(stage + 1) (1 + sharpness
    sigmoid(-slope sigma_t))) sigma_t, the stage one higher every `double` updates until there were `stages`. At first
    r = 0 up to sigma 1.95, and that is denoising; hence the start from a denoiser, though none is needed. huber: c /
    sqrt(d), 0 the plain norm; the paper's 0.06 for ImageNet-64 is 0.00054. Numbers of few dimensions want a large one
    (see pseudo_huber). The loss grows from stage to stage and says nothing of quality.
    """

    times: Any = part("diffusion.times", default=LogNormal(-1.1, 2.0))
    gap: float = 0.5
    sharpness: float = 8.0
    slope: float = 1.0
    double: int = 1250
    stages: int = 8
    huber: float = 0.0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.gap < 1 or self.sharpness < 0 or self.double < 1 or self.stages < 1:
            raise UserError(
                f"ECT: gap = {self.gap}, sharpness = {self.sharpness}, double = {self.double}, stages = {self.stages}; "
                "allowed: (0, 1), >= 0, >= 1, and >= 1"
            )
        if self.huber < 0 or not 0 <= self.class_dropout <= 1:
            raise UserError(
                f"ECT: huber = {self.huber}, class_dropout = {self.class_dropout}; allowed: >= 0, and [0, 1]"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "ECT")
        return replace(run, objective=self, init=str(teacher), sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from level 80, and more at those of CM's grid."""
        return few_steps(Karras(), 40)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("ECT", net, teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, stage = roles["net"], self.stage(batch.step)
        check_boundary(f.path, f.parameterisation, "ECT")
        t = self.times.at(batch.noise.uniform("t"), f.path).to(batch.x.device)
        losses, x0, ratio = self.losses(f, batch, drop_condition(f, batch, self.class_dropout), t, stage)
        logs = {"stage": torch.tensor(float(stage), device=t.device), "ratio": ratio.mean()}
        yield "net", losses.mean(), {**logs, **seen(x0)}

    def stage(self, step: int) -> int:
        """0, 1, ..., stages - 1."""
        return min(step // self.double, self.stages - 1)

    def earlier(self, path: NoisePath, t: Tensor, stage: int) -> Tensor:
        """r [B], below t [B]."""
        return closer(path, t, self.gap ** (stage + 1), self.sharpness, self.slope)

    def losses(self, f: DenoiserLike, batch: Batch, cond: Cond, t: Tensor, stage: int) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each sample [B] at times t [B], with f(x_t, t) and sigma_r / sigma_t [B]."""
        return pair_losses(f, f, batch, cond, t, self.earlier(f.path, t, stage), self.huber)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss of the last stage at 8 fixed times."""
        f, n = roles["net"], len(batch.x)
        at = self.times.fixed(f.path).to(batch.x.device)
        each = [self.losses(f, batch, batch.cond, t.expand(n), self.stages - 1)[0].mean() for t in at]
        return torch.stack(each).mean()
