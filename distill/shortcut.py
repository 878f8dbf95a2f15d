"""Shortcut: a network conditioned on the length of its jump, each of whose jumps equals two of half the length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import Prediction, expand
from gen.distillers.lib.networks import ema_update, frozen_copy
from gen.distillers.lib.velocity import (
    VelocitySource,
    check_roles,
    flow_map_student,
    tau_of_t,
    velocity_in_tau,
    velocity_target,
)
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run

__all__ = ["Shortcut"]


@dataclass(frozen=True)
class Shortcut(Distiller):
    """Shortcut models (Frans et al. 2024, algorithm 1).

    Flow matching at the shortest jumps, self-consistency at all longer ones. The shortest of the jumps 1/steps, ...,
    1/4, 1/2, 1 of the whole time learns the velocity eps - x0 (see tau_of_t for paths that are not Flow). A share of
    the samples learns, for a random longer jump, where two of half the length lead under the role "target", an average
    of the weights. All start on the grid of their jump, so sample with "jump" on a linear grid of a power of two steps.
    The paper and its code hold weight decay 0.1 to be crucial.

    Attributes:
        steps: number of shortest jumps, a power of two, at least 2; the paper's.
        bootstrap: share of the samples that learn from two half jumps, in [0, 1]; the paper's. Its code has 1/8.
        ema_decay: of the target's weights, in [0, 1].
        velocity: of the pair at hand ("data"), as published, or of the "teacher".
        guide: on the teacher; None for none.
        bootstrap_cfg: guidance scale of the half jumps of the shortest length; 1 for none.
        class_dropout: probability that a condition is replaced by the null one.
        clip: largest number in a middle point and in a target of two jumps; None for any. The code's.
    """

    steps: int = 128
    bootstrap: float = 0.25
    ema_decay: float = 0.999
    velocity: VelocitySource = "data"
    guide: Guide | None = part("samplers.guides", default=None)
    bootstrap_cfg: float = 1.0
    class_dropout: float = 0.1
    clip: float | None = 4.0

    def __post_init__(self) -> None:
        check_fields(self, bootstrap="[0, 1]", ema_decay="[0, 1]", class_dropout="[0, 1]", clip="(0, inf)")
        if self.steps < 2 or self.steps & (self.steps - 1):
            raise UserError(f"Shortcut: steps = {self.steps}; it must be a power of two, at least 2")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run with a flow map, from its weights, sampled in one jump."""
        return flow_map_student(run, teacher, self, self.velocity)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("Shortcut", net, teacher, self.velocity, self.guide)
        return {"net": net, "target": frozen_copy(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, noise, device = roles["net"], batch.noise, batch.x.device
        bootstrapped = noise.uniform("bootstrap") < self.bootstrap  # [B]
        jumps = torch.where(bootstrapped, 2 ** noise.integers("level", self.steps.bit_length() - 1), self.steps)
        k = (noise.uniform("place") * jumps).floor() + 1  # the jump, of so many that make a whole
        t, s = (f.path.t1 * end / jumps for end in (k, k - 1))
        error = self.errors(roles, batch, t.to(device), s.to(device), bootstrapped.to(device))  # [B, ...]
        square = (error.float() ** 2).flatten(1).mean(1)  # [B]
        logs = {"flow": _mean_of_rows(square, ~bootstrapped), "consistency": _mean_of_rows(square, bootstrapped)}
        yield "net", square.mean(), logs

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Update the target's average."""
        ema_update(roles["target"].net, roles["net"].net, self.ema_decay)

    def errors(self, roles: Roles, batch: Batch, t: Tensor, s: Tensor, bootstrapped: Tensor) -> Tensor:
        """Return u(x_t, t, s) less its target, [B, ...]; rows `bootstrapped` [B] learn from two half jumps."""
        f, eps = roles["net"], batch.normal("eps")
        cond = drop_condition(f, batch, self.class_dropout)
        cond = {k: torch.where(expand(bootstrapped, v).bool(), batch.cond[k], v) for k, v in cond.items()}
        x = f.path.mix(batch.x, eps, t)
        target = velocity_in_tau(velocity_target(roles, batch, x, eps, t, cond, self.velocity, self.guide))
        if bool(bootstrapped.any()):
            rows = {k: v[bootstrapped] for k, v in cond.items()}
            target[bootstrapped] = self.two_half_jumps(
                roles["target"], x[bootstrapped], t[bootstrapped], s[bootstrapped], rows
            )
        return velocity_in_tau(f(x, t, cond, s=s)) - target

    @torch.no_grad()
    def two_half_jumps(self, target: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """Return the average velocity of two half jumps of the target network from x_t to s, [B, ...]."""
        path, middle = target.path, (t + s) / 2
        first = self.half_jump(target, x, t, middle, cond)
        x_middle = self.clipped(path.mix(*first, middle))
        second = self.half_jump(target, x_middle, middle, s, cond)
        tau_t, tau_m, tau_s = (tau_of_t(path, time)[0] for time in (t, middle, s))
        share = expand((tau_t - tau_m) / (tau_t - tau_s), x)
        return self.clipped(share * velocity_in_tau(first) + (1 - share) * velocity_in_tau(second))

    def half_jump(self, f: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Prediction:
        """Return one jump of the target network, guided where it has the shortest length."""
        pred = f(x, t, cond, s=s)
        if self.bootstrap_cfg == 1 or not cond:
            return pred
        null = f(x, t, f.null(cond), s=s)
        shortest = t - s < 1.5 * f.path.t1 / self.steps
        scale = expand(torch.where(shortest, self.bootstrap_cfg, 1.0), x)
        return Prediction(*(u + scale * (c - u) for c, u in zip(pred, null, strict=True)))

    def clipped(self, x: Tensor) -> Tensor:
        """Return x within [-clip, clip]."""
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean square error of two half jumps that start in pure noise, over all lengths."""
        n, total = len(batch.x), []
        for level in range(self.steps.bit_length() - 1):
            t = torch.full((n,), roles["net"].path.t1, dtype=torch.float64, device=batch.x.device)
            every = torch.ones_like(t, dtype=torch.bool)
            total.append(self.errors(roles, batch, t, t * (1 - 2.0**-level), every).square().mean())
        return torch.stack(total).mean()


def _mean_of_rows(square: Tensor, rows: Tensor) -> Tensor:
    """The mean of some rows; 0 of none."""
    rows = rows.to(square.device)
    return (square.detach() * rows).sum() / rows.sum().clamp(min=1)
