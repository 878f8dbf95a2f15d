"""Consistency models: a network that maps any point of an ODE's trajectory to its end, in one evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid, Guide
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.distillers.distances import Distance
from gen.distillers.distances.square import Square
from gen.distillers.lib.consistency import (
    check_boundary,
    consistency_fn,
    consistency_target,
    heun_step,
    output_stats,
)
from gen.distillers.lib.networks import ema_update, frozen_copy
from gen.distillers.lib.teacher import guided_teacher
from gen.distillers.lib.times import mean_over
from gen.distillers.lib.velocity import VelocitySource, check_roles
from gen.samplers.grids.coarse import Coarse
from gen.samplers.grids.karras import Karras
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["Consistency"]


@dataclass(frozen=True)
class Consistency(Distiller):
    """Consistency distillation, or training on data alone (Song et al. 2023, algorithms 2 and 3).

    The loss is distance(f(x_t, t), f-(x_r, r)) for neighbours t > r of a grid. f is the x0 of the prediction, with f(x,
    0) = x by the parameterisation (gen.distillers.lib.consistency), and f- the role "target": the same network, its
    weights an exponential average of the student's. The lowest time of the paper is 0.002; here that is followed by 0.
    The loss grows with N and says nothing of quality. The defaults distil; the paper trains CIFAR-10 on data with
    grid_steps (2, 150), ema_decay 0.9, and with the distance lpips throughout.

    Attributes:
        velocity: "teacher" is consistency distillation, x_r one Heun step of the teacher from x_t; "data" is
            consistency training, x_r of the same data and noise as x_t.
        grid: the times t, and 0.
        grid_steps: N, the grid's number of steps, at first and after `growth_updates`: N(k) = ceil(sqrt(k / K ((s1 +
            1)^2 - s0^2) + s0^2) - 1) + 1 if the two differ (appendix C); 40 for distillation in the paper.
        growth_updates: K, at least 1.
        ema_decay: mu_0 of the target's decay mu(k) = mu_0^(s0 / N(k)), in [0, 1), as the paper has it. Public code
            divides by N(k) - 1, the steps between N(k) times: .95 here is .9025 there at k = 0, where N = s0 = 2.
        distance: of gen.distillers.distances.
        guide: on the teacher; None for none.
        class_dropout: probability that a condition is replaced by the null one.
    """

    velocity: VelocitySource = "teacher"
    grid: Grid = part("samplers.grids", default=Karras())
    grid_steps: tuple[int, int] = (40, 40)
    growth_updates: int = 10_000
    ema_decay: float = 0.95
    distance: Distance = part("distillers.distances", default=Square())
    guide: Guide | None = part("samplers.guides", default=None)
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, growth_updates="[1, inf)", ema_decay="[0, 1)", class_dropout="[0, 1]")
        if not 2 <= self.grid_steps[0] <= self.grid_steps[1]:
            raise UserError(f"Consistency: grid_steps = {self.grid_steps}; it must be 2 <= first <= last")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "Consistency")
        learns = str(teacher) if self.velocity == "teacher" else None
        return replace(run, objective=self, teacher=learns, init=str(teacher), sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from the noisiest time that was trained, and more at others that were (algorithm 1)."""
        return Sampler("renoise", steps=1, grid=Coarse(self.grid, self.steps_at(self.growth_updates)))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("Consistency", net, teacher, self.velocity, self.guide)
        return {"net": net, "target": frozen_copy(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, n = roles["net"], self.steps_at(batch.step)
        check_boundary(f.path, f.parameterisation, "Consistency")
        i = batch.noise.integers("interval", n)
        losses, x0 = self.losses(roles, batch, drop_condition(f, batch, self.class_dropout), n, i, roles["target"])
        logs = {
            "grid_steps": torch.tensor(float(n)),
            "target_decay": torch.tensor(self.decay_at(batch.step), dtype=torch.float64),
        }
        yield "net", losses.mean(), {**{k: v.to(losses.device) for k, v in logs.items()}, **output_stats(x0)}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Update the target's average."""
        ema_update(roles["target"].net, roles["net"].net, logs["target_decay"])

    def steps_at(self, update: int) -> int:
        """Return N(k), the number of times above 0."""
        s0, s1 = self.grid_steps
        if s0 == s1:
            return s0
        share = min(update / self.growth_updates, 1.0)
        return math.ceil(math.sqrt(share * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1

    def decay_at(self, update: int) -> float:
        """Return mu(k)."""
        return self.ema_decay ** (self.grid_steps[0] / self.steps_at(update))

    def losses(
        self, roles: Roles, batch: Batch, cond: Cond, n: int, i: Tensor, target: DenoiserLike
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample [B] on intervals i [B] of n, 0 the noisiest, and f(x_t, t)."""
        f, eps, times = roles["net"], batch.normal("eps"), self.grid.times(roles["net"].path, n)
        t, r = batch.to_device(times[i]), batch.to_device(times[i + 1])
        x_t = f.path.mix(batch.x, eps, t)
        if self.velocity == "teacher":
            x_r = heun_step(guided_teacher(roles["teacher"], f.path, self.guide), x_t, t, r, cond)
        else:
            x_r = f.path.mix(batch.x, eps, r)
        goal = consistency_target(target, x_r, r, cond)
        x0 = consistency_fn(f, x_t, t, cond)
        return self.distance(x0, goal), x0

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss on 8 intervals, evenly chosen, of the last grid, with the network as its own target."""
        n, f = self.steps_at(self.growth_updates), roles["net"]
        at = torch.unique(((torch.arange(8, dtype=torch.float64) + 0.5) / 8 * n).long())
        return mean_over(at, batch, lambda i: self.losses(roles, batch, batch.cond, n, i, f)[0])
