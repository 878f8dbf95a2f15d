"""sCM: a consistency model in continuous time, taught by a teacher's velocity (sCD) or by the data's (sCT)."""

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
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.times import LogNormal
from gen.distillers.lib.jvp import Derivative, slope
from gen.distillers.lib.velocity import Source, check_roles, known
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.objectives.uncertainty import FAR, LogVariance
from gen.training.run import Run, Sampler

__all__ = ["SCM"]


@dataclass(frozen=True)
class SCM:
    """TrigFlow's continuous-time consistency (Lu & Song 2024, algorithm 1), on every path and parameterisation.

    In units of the data's deviation, with the angle tan(a) = sigma / (alpha sigma_data), every path is y = cos(a) x0 +
    sin(a) eps, and a network's prediction is F = cos(a) eps - sin(a) x0; its denoised x0, cos(a) y - sin(a) F, must not
    change along the flow. V on Trig with sigma_data 1 says F itself; EDM says -F. The tangent

        g = -cos^2(a) (F - dy/da) - r cos(a) sin(a) (y + dF/da),   r rising to 1 over `warmup` updates,

    is shortened to g / (|g| + damping), and the loss is e^-u(t) |F - sg(F) - g|^2 / d tan(a)^prior + u(t), u learned if
    `adaptive` and else 0, d the number of elements (FastGen has prior 1). velocity: dy/da of the teacher (sCD), upon
    which `guide` acts, or of the pair at hand (sCT). The loss is |g|^2 whatever the samples are like: it tells nothing.
    """

    times: Any = part("diffusion.times", default=LogNormal(-1.0, 1.4))
    velocity: Source = "teacher"
    guide: Any = part("samplers.guides", default=None)
    sigma_data: float = 1.0
    warmup: int = 10_000
    damping: float = 0.1
    prior: float = 0.0
    adaptive: bool = True
    class_dropout: float = 0.1
    derivative: Derivative = "jvp"

    def __post_init__(self) -> None:
        if not (self.sigma_data > 0 and self.damping > 0):
            raise UserError(f"SCM: sigma_data = {self.sigma_data}, damping = {self.damping}; both must be positive")
        if self.warmup < 0 or not 0 <= self.class_dropout <= 1:
            raise UserError(
                f"SCM: warmup = {self.warmup}, class_dropout = {self.class_dropout}; allowed: >= 0, and [0, 1]"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run from its weights; one evaluation samples it, or more with fresh noise between them."""
        taught = str(teacher) if self.velocity == "teacher" else None
        return replace(run, objective=self, teacher=taught, init=str(teacher), sampler=Sampler("renoise", steps=1))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("SCM", net, teacher, self.velocity, self.guide)
        return {"net": net, "weight": LogVariance(128)} if self.adaptive else {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = self.times.at(batch.noise.uniform("t"), f.path).to(batch.x.device)
        out, g = self.pair(roles, batch, drop_condition(f, batch, self.class_dropout), t, self.rise(batch.step))
        size = g.flatten(1).norm(dim=1)  # [B]
        g = g / expand(size + self.damping, g)
        error = ((out - out.detach() - g) ** 2).flatten(1).mean(1)  # [B]
        if self.prior:
            error = error * self.angle(f.path, t)[0].tan().to(error) ** -self.prior
        logs = {"tangent": size.mean(), "rise": torch.tensor(self.rise(batch.step), device=t.device)}
        if "weight" not in roles:
            yield "net", error.mean(), logs
            return
        u = roles["weight"].net(f.path.lam(t).clamp(-FAR, FAR).float() / 4).to(error)
        yield ("net", "weight"), (error / u.exp() + u).mean(), {**logs, "error": error.detach().mean()}

    def rise(self, step: int) -> float:
        """r, the share of the unstable half of the tangent."""
        return min(1.0, step / self.warmup) if self.warmup else 1.0

    def pair(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor, r: float) -> tuple[Tensor, Tensor]:
        """F and its whole tangent g, both [B, ...], at times t [B]; g carries no gradient."""
        f, eps = roles["net"], batch.normal("eps")
        x = f.path.mix(batch.x, eps, t)
        toward: Prediction = known(roles, batch, x, eps, t, cond, self.velocity, self.guide)
        angle, rate, size = self.angle(f.path, t)
        cos, sin = (expand(c, x) for c in (angle.cos(), angle.sin()))

        def turn(x: Tensor, t: Tensor) -> Tensor:
            return self.turn(f, x, t, cond)

        out = turn(x, t)
        # cos sin da goes into the tangents, as the paper has it: dF/da itself may overflow at both ends.
        da = angle.cos() * angle.sin() / rate  # dt for which the angle turns by cos sin
        change = slope(turn, x, t, expand(da, x) * f.path.velocity(toward, t), da, self.derivative)
        dy = cos * toward.eps - sin * toward.x0 / self.sigma_data
        g = -(cos**2) * (out.detach() - dy) - r * (cos * sin * x / expand(size, x) + change)
        return out, g

    def turn(self, f: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """F = cos(a) eps - sin(a) x0 / sigma_data, of the network's prediction."""
        pred, angle = f(x, t, cond), self.angle(f.path, t)[0]
        return expand(angle.cos(), x) * pred.eps - expand(angle.sin(), x) * pred.x0 / self.sigma_data

    def angle(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, da / dt and the deviation sqrt(alpha^2 sigma_data^2 + sigma^2) of x_t."""
        alpha, sigma = path.alpha(t) * self.sigma_data, path.sigma(t)
        rate = (path.dsigma(t) * alpha - path.dalpha(t) * self.sigma_data * sigma) / (alpha**2 + sigma**2)
        return torch.atan2(sigma, alpha), rate, (alpha**2 + sigma**2).sqrt()

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean square of the whole tangent, in full length, at 8 fixed times: 0 for the teacher's exact map."""
        at = self.times.fixed(roles["net"].path).to(batch.x.device)
        tangents = [self.pair(roles, batch, batch.cond, t.expand(len(batch.x)), 1.0)[1] for t in at]
        return torch.stack([g.square().mean() for g in tangents]).mean()
