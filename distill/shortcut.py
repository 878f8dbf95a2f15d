"""Shortcut: a network that is told how far to jump, each of whose jumps equals two of half its length."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import Prediction, expand
from gen.distillers.lib.velocity import Source, along, check_roles, flow_time, known
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["Shortcut"]


@dataclass(frozen=True)
class Shortcut:
    """Flow matching at the shortest jumps, self-consistency at all longer ones (Frans et al. 2024, algorithm 1).

    The shortest of the jumps 1/steps, ..., 1/4, 1/2, 1 of the whole time learns the velocity eps - x0 (see flow_time
    for paths that are not Flow), of the pair at hand, as published, or of the teacher, upon which `guide` acts. A share
    `bootstrap` of the samples learns, for a random longer jump, where two of half the length lead the "target", an
    average of the weights that keeps `decay` of itself at each update. All start on the grid of their jump, so sample
    with "jump" on a linear grid of a power of two steps. (The authors' code bootstraps an eighth of the samples, the
    paper a quarter; both hold weight decay 0.1 to be crucial.) cfg: the guidance that the half jumps of the shortest
    length get. clip: the largest number in a middle point and in a velocity that two jumps teach, None for any.
    """

    steps: int = 128
    bootstrap: float = 0.25
    decay: float = 0.999
    velocity: Source = "data"
    guide: Any = part("samplers.guides", default=None)
    cfg: float = 1.0
    class_dropout: float = 0.1
    clip: float | None = 4.0

    def __post_init__(self) -> None:
        if self.steps < 2 or self.steps & (self.steps - 1):
            raise UserError(f"Shortcut: steps = {self.steps}; it must be a power of two, at least 2")
        for name in ("bootstrap", "decay", "class_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"Shortcut: {name} = {getattr(self, name)}; it must be in [0, 1]")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"Shortcut: clip = {self.clip}; it must be positive, or none")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run with a network that is told the interval as well, from its weights; one jump samples it."""
        model = (
            run.model if hasattr(run.model, "tell") else {"name": "flow_map", "inner": run.model, "tell": "interval"}
        )
        taught = str(teacher) if self.velocity == "teacher" else None
        sampler = Sampler("jump", steps=1)
        return replace(run, model=model, objective=self, teacher=taught, init=str(teacher), sampler=sampler)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("Shortcut", net, teacher, self.velocity, self.guide)
        return {"net": net, "target": copy.deepcopy(net).requires_grad_(False)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, noise, device = roles["net"], batch.noise, batch.x.device
        double = noise.uniform("bootstrap") < self.bootstrap  # [B]
        levels = self.steps.bit_length() - 1
        parts = torch.where(
            double, 2 ** noise.integers("level", levels), self.steps
        )  # how many such jumps make a whole
        place = (noise.uniform("place") * parts).floor() + 1
        t, s = (f.path.t1 * k / parts for k in (place, place - 1))
        error = self.errors(roles, batch, t.to(device), s.to(device), double.to(device))  # [B, ...]
        square = (error.float() ** 2).flatten(1).mean(1)  # [B]
        logs = {"flow": _mean(square, ~double), "consistency": _mean(square, double)}
        yield "net", square.mean(), logs

    @torch.no_grad()
    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """The target's weights after an update."""
        net = getattr(roles["net"].net, "module", roles["net"].net)
        for old, new in zip(roles["target"].net.parameters(), net.parameters(), strict=True):
            old.lerp_(new, 1 - self.decay)

    def errors(self, roles: Roles, batch: Batch, t: Tensor, s: Tensor, double: Tensor) -> Tensor:
        """u(x_t, t, s) less its target, [B, ...]; double [B] says which rows learn from two half jumps."""
        f, eps = roles["net"], batch.normal("eps")
        cond = drop_condition(f, batch, self.class_dropout)
        cond = {k: torch.where(double.reshape(-1, *[1] * (v.ndim - 1)), batch.cond[k], v) for k, v in cond.items()}
        x = f.path.mix(batch.x, eps, t)
        target = along(known(roles, batch, x, eps, t, cond, self.velocity, self.guide))
        if bool(double.any()):
            rows = {k: v[double] for k, v in cond.items()}
            target[double] = self.two(roles["target"], x[double], t[double], s[double], rows)
        return along(f(x, t, cond, s=s)) - target

    @torch.no_grad()
    def two(self, target: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """The average velocity of two half jumps of the target network from x_t to s, [B, ...]."""
        path, middle = target.path, (t + s) / 2
        half = self.jump(target, x, t, middle, cond)
        between = self._clip(path.mix(half.x0, half.eps, middle))
        rest = self.jump(target, between, middle, s, cond)
        (tau_t, _), (tau_m, _), (tau_s, _) = (flow_time(path, time) for time in (t, middle, s))
        share = expand((tau_t - tau_m) / (tau_t - tau_s), x)
        return self._clip(share * along(half) + (1 - share) * along(rest))

    def jump(self, f: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Prediction:
        """One jump of the target network, guided where it has the shortest length."""
        pred = f(x, t, cond, s=s)
        if self.cfg == 1 or not cond:
            return pred
        null = f(x, t, f.null(cond), s=s)
        shortest = t - s < 1.5 * f.path.t1 / self.steps
        scale = expand(torch.where(shortest, self.cfg, 1.0), x)
        return Prediction(*(u + scale * (c - u) for c, u in zip(pred, null, strict=True)))

    def _clip(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean square error of two half jumps that start in pure noise, over all lengths."""
        n, total = len(batch.x), []
        for level in range(self.steps.bit_length() - 1):
            t = torch.full((n,), roles["net"].path.t1, dtype=torch.float64, device=batch.x.device)
            every = torch.ones_like(t, dtype=torch.bool)
            total.append(self.errors(roles, batch, t, t * (1 - 2.0**-level), every).square().mean())
        return torch.stack(total).mean()


def _mean(square: Tensor, rows: Tensor) -> Tensor:
    """The mean of some rows, 0 of none."""
    rows = rows.to(square.device)
    return (square.detach() * rows).sum() / rows.sum().clamp(min=1)
