"""iCT: consistency training that needs no teacher, no target network and no learned distance."""

from __future__ import annotations

import math
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
from gen.distillers.lib.consistency import check_boundary, consistent, few_steps, level, pseudo_huber, seen, target
from gen.distillers.lib.velocity import check_roles
from gen.samplers.grids.karras import Karras
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["ICT"]


@dataclass(frozen=True)
class ICT:
    """|f(x_t, t) - sg f(x_r, r)| / (sigma_t - sigma_r), pseudo-Huber's, for neighbours t > r (Song & Dhariwal 2024).

    f is the x0 of the prediction; both points have the same data, noise, dropout and weights: an average as the target
    is what the paper removes. sigma is the level sigma / alpha, so that each path has EDM's weights. The intervals of
    the grid are drawn by the probability that ln sigma ~ N(mean, std^2) falls into them (table 1); their number doubles
    every `double` updates, N(k) = min(s0 2^floor(k / double), s1) + 1 times above 0 with (s0, s1) = nodes. double: the
    paper's is K / (log2(s1 / s0) + 1), 50,000 of 400,000 updates. huber: c / sqrt(d). The loss grows with N and says
    nothing of quality.
    """

    grid: Any = part("samplers.grids", default=Karras())
    nodes: tuple[int, int] = (10, 1280)
    double: int = 1250
    mean: float = -1.1
    std: float = 2.0
    huber: float = 0.00054
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if len(self.nodes) != 2 or not 1 <= self.nodes[0] <= self.nodes[1] or self.double < 1:
            raise UserError(
                f"ICT: nodes = {self.nodes}, double = {self.double}; it must be 1 <= first <= last and double >= 1"
            )
        if not self.std > 0 or self.huber < 0 or not 0 <= self.class_dropout <= 1:
            raise UserError(
                f"ICT: std = {self.std}, huber = {self.huber}, class_dropout = {self.class_dropout}; "
                "allowed: > 0, >= 0, and [0, 1]"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "ICT")
        return replace(run, objective=self, init=str(teacher), sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from the noisiest time that was trained, and more at others that were."""
        return few_steps(self.grid, self.nodes[1] + 1)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("ICT", net, teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, count = roles["net"], self.count(batch.step)
        check_boundary(f.path, f.parameterisation, "ICT")
        i = self.intervals(batch.noise.uniform("interval"), f.path, count)
        losses, x0 = self.losses(f, batch, drop_condition(f, batch, self.class_dropout), count, i)
        yield "net", losses.mean(), {"nodes": torch.tensor(float(count), device=losses.device), **seen(x0)}

    def count(self, step: int) -> int:
        """N(k), the number of times above 0."""
        first, last = self.nodes
        doublings = min(step // self.double, math.ceil(math.log2(last / first)))
        return min(first * 2**doublings, last) + 1

    def intervals(self, u: Tensor, path: NoisePath, count: int) -> Tensor:
        """Which interval of the grid, 0 the noisiest, each of uniform numbers u [B] means."""
        sigma = level(path, self.grid.times(path, count))  # falling, the last one 0
        below = torch.special.ndtr((sigma.log() - self.mean) / self.std)
        share = (below[0] - below[1:]) / (below[0] - below[-1])  # of the noise levels, down to the end of interval i
        return torch.searchsorted(share, u.to(share), right=True).clamp(max=count - 1)

    def losses(self, f: DenoiserLike, batch: Batch, cond: Cond, count: int, i: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each sample [B] on intervals i [B] of `count`, 0 the noisiest; and f(x_t, t)."""
        eps, times = batch.normal("eps"), self.grid.times(f.path, count)
        t, r = times[i].to(batch.x.device), times[i + 1].to(batch.x.device)
        goal = target(f, f.path.mix(batch.x, eps, r), r, cond)
        x0 = consistent(f, f.path.mix(batch.x, eps, t), t, cond)
        return pseudo_huber(x0, goal, self.huber) / (level(f.path, t) - level(f.path, r)).to(x0), x0

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss on 8 intervals of the last grid, the midpoints of 8 equal shares of the training density."""
        f, count = roles["net"], self.nodes[1] + 1
        at = self.intervals((torch.arange(8, dtype=torch.float64) + 0.5) / 8, f.path, count)
        each = [self.losses(f, batch, batch.cond, count, i.expand(len(batch.x)))[0].mean() for i in at]
        return torch.stack(each).mean()
