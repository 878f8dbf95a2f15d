"""MeanFlow: a network that knows the average velocity between any two times, so that one jump spans them all."""

from __future__ import annotations

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
from gen.diffusion.times import LogitNormal
from gen.distillers.lib.jvp import Derivative, slope
from gen.distillers.lib.velocity import Source, along, check_roles, flow_time, known
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["MeanFlow"]


@dataclass(frozen=True)
class MeanFlow:
    """The MeanFlow identity u = v - (t - s) du/dt as a regression, du/dt along the flow (Geng et al. 2025, eq. 11).

    u(x, t, s) = (x_t - x_s) / (t - s) is the average of the velocity v, here eps - x0 (see flow_time for paths that are
    not Flow); du/dt is the network's own, without gradient. times: t and s are two draws of it in order, and for a
    share `equal` s = t, plain flow matching. velocity: v of the pair at hand, as published, or of the teacher; `guide`
    acts upon the teacher. Loss |error|^2 / (|error|^2 + damping)^power, |.|^2 a sum over elements and the divisor
    without gradient (eq. 22; CIFAR-10's has power 0.75, damping 1e-3).

    Guidance inside (eq. 21 and appendix B.1): where t / t1 is in `guided`, v is omega v + kappa u(x, t, t | cond) +
    (1 - omega - kappa) u(x, t, t | null), an effective scale of omega / (1 - kappa); rows whose condition was dropped
    keep v. The loss says little of the samples: it is a fraction of itself, and its target moves.
    """

    times: Any = part("diffusion.times", default=LogitNormal(-0.4, 1.0))
    equal: float = 0.75
    velocity: Source = "data"
    guide: Any = part("samplers.guides", default=None)
    omega: float = 1.0
    kappa: float = 0.0
    guided: tuple[float, float] = (0.0, 1.0)
    class_dropout: float = 0.1
    power: float = 1.0
    damping: float = 0.01
    derivative: Derivative = "jvp"

    def __post_init__(self) -> None:
        for name in ("equal", "class_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"MeanFlow: {name} = {getattr(self, name)}; it must be in [0, 1]")
        if self.power < 0 or not self.damping > 0:
            raise UserError(f"MeanFlow: power = {self.power}, damping = {self.damping}; allowed: >= 0, and > 0")
        if not self.omega > 0 or not 0 <= self.kappa < 1:
            raise UserError(
                f"MeanFlow: omega = {self.omega}, kappa = {self.kappa}; it must be omega > 0, 0 <= kappa < 1"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run with a network that is told the interval as well, from its weights; one jump samples it."""
        model = (
            run.model if hasattr(run.model, "tell") else {"name": "flow_map", "inner": run.model, "tell": "interval"}
        )
        taught = str(teacher) if self.velocity == "teacher" else None
        sampler = Sampler("jump", steps=1)
        return replace(run, model=model, objective=self, teacher=taught, init=str(teacher), sampler=sampler)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("MeanFlow", net, teacher, self.velocity, self.guide)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        draws = torch.stack([self.times.at(batch.noise.uniform(name), f.path) for name in ("t", "s")])
        t, s = draws.amax(0).to(batch.x.device), draws.amin(0).to(batch.x.device)
        s = torch.where(batch.noise.uniform("equal").to(s.device) < self.equal, t, s)
        error = self.errors(roles, batch, drop_condition(f, batch, self.class_dropout), t, s)  # [B, ...]
        square = (error.float() ** 2).flatten(1).sum(1)  # [B]
        loss = square / (square.detach() + self.damping) ** self.power
        yield "net", loss.mean(), {"error": square.detach().mean() / batch.x[0].numel()}

    def errors(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor, s: Tensor) -> Tensor:
        """u(x_t, t, s) less its target, [B, ...], at times s <= t, both [B]."""
        f, eps = roles["net"], batch.normal("eps")
        x = f.path.mix(batch.x, eps, t)
        toward: Prediction = known(roles, batch, x, eps, t, cond, self.velocity, self.guide)
        toward = self.guidance(f, x, t, cond, toward)
        target = along(toward)
        rows = s < t  # where s = t the target is v itself
        if bool(rows.any()):
            target[rows] -= self.correction(f, x, toward, t, cond, s, rows)
        return along(f(x, t, cond, s=s)) - target

    def correction(
        self, f: Denoiser, x: Tensor, toward: Prediction, t: Tensor, cond: Cond, s: Tensor, rows: Tensor
    ) -> Tensor:
        """(tau_t - tau_s) du / d tau along the flow, of some rows."""
        cond, t, s, x = {k: v[rows] for k, v in cond.items()}, t[rows], s[rows], x[rows]
        toward = Prediction(toward.x0[rows], toward.eps[rows])
        tau, rate = flow_time(f.path, t)
        dx = f.path.velocity(toward, t) / expand(rate, x)
        du = slope(lambda x, t: along(f(x, t, cond, s=s)), x, t, dx, 1 / rate, self.derivative)
        return expand(tau - flow_time(f.path, s)[0], x) * du

    @torch.no_grad()
    def guidance(self, f: Denoiser, x: Tensor, t: Tensor, cond: Cond, toward: Prediction) -> Prediction:
        """`toward` guided by the network itself, where that is asked for."""
        if not cond or (self.omega == 1 and self.kappa == 0):
            return toward
        low, high = (bound * f.path.t1 for bound in self.guided)
        rows = (t >= low) & (t <= high)
        nothing, rest = f.null(cond), 1 - self.omega - self.kappa
        rows &= torch.stack([(cond[k] != v).reshape(len(v), -1).any(1) for k, v in nothing.items()]).any(0)
        own, null = f(x, t, cond, s=t), f(x, t, nothing, s=t)
        mixed = [self.omega * v + self.kappa * c + rest * u for v, c, u in zip(toward, own, null, strict=True)]
        keep = rows.reshape(-1, *[1] * (x.ndim - 1))
        return Prediction(*(torch.where(keep, new, old) for new, old in zip(mixed, toward, strict=True)))

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean square of the errors at 8 fixed times t, each with s = t, t / 2 and 0."""
        at = self.times.fixed(roles["net"].path).to(batch.x.device)
        pairs = [(t.expand(len(batch.x)), t.expand(len(batch.x)) * part) for t in at for part in (1.0, 0.5, 0.0)]
        return torch.stack([self.errors(roles, batch, batch.cond, t, s).square().mean() for t, s in pairs]).mean()
