"""Consistency models: a network that says where the ODE through a noisy point ends, so that one evaluation samples."""

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
from gen.distillers.distances.square import Square
from gen.distillers.lib.consistency import (
    Decay,
    check_boundary,
    consistent,
    few_steps,
    frozen,
    ode_step,
    seen,
    target,
)
from gen.distillers.lib.teacher import guided_teacher
from gen.distillers.lib.velocity import Source, check_roles
from gen.samplers.grids.karras import Karras
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["Consistency"]


@dataclass(frozen=True)
class Consistency:
    """distance(f(x_t, t), f-(x_r, r)) for neighbours t > r of a grid (Song et al. 2023, algorithms 2 and 3).

    f is the x0 of the prediction, f(x, 0) = x by the parameterisation (gen.distillers.lib.consistency), and f- the role
    "target": the same network, its weights an exponential average of the student's. velocity: "teacher" is consistency
    distillation, x_r one Heun step of the (guided) teacher from x_t; "data" is consistency training, x_r of the same
    data and noise as x_t.

    nodes: the grid's times but for 0 at first and at the end, after `length` updates: N(k) = ceil(sqrt(k / length
    ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 if the two differ. decay: of the average at first, mu(k) = decay^(s0 / N(k)).
    The defaults distil; the paper trains CIFAR-10 with nodes (2, 150), decay 0.9, and with the distance lpips
    throughout. Its lowest time is 0.002, here that is followed by 0. The loss grows with N and says nothing of quality.
    """

    velocity: Source = "teacher"
    grid: Any = part("samplers.grids", default=Karras())
    nodes: tuple[int, int] = (40, 40)
    length: int = 10_000
    decay: float = 0.95
    distance: Any = part("distillers.distances", default=Square())
    guide: Any = part("samplers.guides", default=None)
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if len(self.nodes) != 2 or not 2 <= self.nodes[0] <= self.nodes[1] or self.length < 1:
            raise UserError(
                f"Consistency: nodes = {self.nodes}, length = {self.length}; "
                "it must be 2 <= first <= last and length >= 1"
            )
        if not 0 <= self.decay < 1 or not 0 <= self.class_dropout <= 1:
            raise UserError(
                f"Consistency: decay = {self.decay}, class_dropout = {self.class_dropout}; allowed: [0, 1), and [0, 1]"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "Consistency")
        learns = str(teacher) if self.velocity == "teacher" else None
        return replace(run, objective=self, teacher=learns, init=str(teacher), sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from the noisiest time that was trained, and more at others that were."""
        return few_steps(self.grid, self.count(self.length))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("Consistency", net, teacher, self.velocity, self.guide)
        return {"net": net, "target": frozen(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, count = roles["net"], self.count(batch.step)
        check_boundary(f.path, f.parameterisation, "Consistency")
        i = batch.noise.integers("interval", count)
        losses, x0 = self.losses(roles, batch, drop_condition(f, batch, self.class_dropout), count, i, roles["target"])
        device = losses.device
        mu = torch.tensor(self.target_decay(batch.step), dtype=torch.float64, device=device)
        yield "net", losses.mean(), {"nodes": torch.tensor(float(count), device=device), "target_decay": mu, **seen(x0)}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """The target's average, one update further."""
        Decay(decay=logs["target_decay"]).update(roles["target"].net, roles["net"].net, 1)

    def count(self, step: int) -> int:
        """N(k), the number of times above 0."""
        first, last = self.nodes
        if first == last:
            return first
        share = min(step / self.length, 1.0)
        return math.ceil(math.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1

    def target_decay(self, step: int) -> float:
        """mu(k)."""
        return self.decay ** (self.nodes[0] / self.count(step))

    def losses(
        self, roles: Roles, batch: Batch, cond: Cond, count: int, i: Tensor, teaches: DenoiserLike
    ) -> tuple[Tensor, Tensor]:
        """The loss of each sample [B] on intervals i [B] of `count`, 0 the noisiest; and f(x_t, t)."""
        f, eps = roles["net"], batch.normal("eps")
        times = self.grid.times(f.path, count)
        t, r = times[i].to(batch.x.device), times[i + 1].to(batch.x.device)
        x = f.path.mix(batch.x, eps, t)
        if self.velocity == "teacher":
            x_r = ode_step(guided_teacher(roles["teacher"], f.path, self.guide), x, t, r, cond)
        else:
            x_r = f.path.mix(batch.x, eps, r)
        goal = target(teaches, x_r, r, cond)
        x0 = consistent(f, x, t, cond)
        losses: Tensor = self.distance(x0, goal)
        return losses, x0

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss on 8 intervals, evenly chosen, of the last grid, with the network as its own target."""
        count, f = self.count(self.length), roles["net"]
        at = torch.unique(((torch.arange(8, dtype=torch.float64) + 0.5) / 8 * count).long())
        each = [self.losses(roles, batch, batch.cond, count, i.expand(len(batch.x)), f)[0].mean() for i in at]
        return torch.stack(each).mean()
