"""sCM: a consistency model in continuous time, from a teacher's velocity (sCD) or from the data's (sCT)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import NoisePath, expand
from gen.diffusion.times import LogNormal, Times
from gen.distillers.lib.jvp import Derivative, directional_derivative
from gen.distillers.lib.times import draw_times, mean_at_fixed_times
from gen.distillers.lib.velocity import VelocitySource, check_roles, velocity_target
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.objectives.uncertainty import MAX_LAM, LogVariance
from gen.training.run import Run, Sampler

__all__ = ["SCM"]


@dataclass(frozen=True)
class SCM(Distiller):
    """Continuous-time consistency models, sCM (Lu & Song 2024, algorithm 1), on every path and parameterisation.

    In units of the data's deviation, with the angle tan(a) = sigma / (alpha sigma_data), every path is y = cos(a) x0 +
    sin(a) eps, and a network's prediction is F = cos(a) eps - sin(a) x0; its denoised x0, cos(a) y - sin(a) F, must not
    change along the flow. V on Trig with sigma_data 1 predicts F itself; EDM -F. The tangent

        g = -cos^2(a) (F - dy/da) - r cos(a) sin(a) (y + dF/da),   r rising to 1 over `warmup` updates,

    is normalised to g / (|g| + damping / sigma_data), the paper's rule in these units, and the loss is e^-u(t) |F -
    sg(F) - g|^2 / d tan(a)^prior + u(t), d the number of elements. The loss is |g|^2 whatever the samples are like: it
    says nothing of them.

    Attributes:
        times: density of t; FastGen's.
        velocity: dy/da of the "teacher" (sCD), or of the pair at hand ("data", sCT).
        guide: on the teacher; None for none.
        sigma_data: deviation of the data, positive.
        warmup: updates over which r rises; 0 for r = 1 throughout. The paper's.
        damping: c of the tangent's normalisation, positive; the paper's.
        prior: exponent of the prior weighting; FastGen has 1.
        adaptive: whether u is learned, in the role "weight"; else 0.
        class_dropout: probability that a condition is replaced by the null one.
        derivative: see directional_derivative.
    """

    times: Times = part("diffusion.times", default=LogNormal(-1.0, 1.4))
    velocity: VelocitySource = "teacher"
    guide: Guide | None = part("samplers.guides", default=None)
    sigma_data: float = 1.0
    warmup: int = 10_000
    damping: float = 0.1
    prior: float = 0.0
    adaptive: bool = True
    class_dropout: float = 0.1
    derivative: Derivative = "jvp"

    def __post_init__(self) -> None:
        check_fields(self, sigma_data="(0, inf)", damping="(0, inf)", warmup="[0, inf)", class_dropout="[0, 1]")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights; one evaluation samples, or more with fresh noise between them."""
        learns = str(teacher) if self.velocity == "teacher" else None
        return replace(run, objective=self, teacher=learns, init=str(teacher), sampler=Sampler("renoise", steps=1))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("SCM", net, teacher, self.velocity, self.guide)
        return {"net": net, "weight": LogVariance(128)} if self.adaptive else {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, r = roles["net"], self.tangent_warmup(batch.step)
        t = draw_times(self.times, batch, "t", f.path)
        out, g = self.output_and_tangent(roles, batch, drop_condition(f, batch, self.class_dropout), t, r)
        size = g.flatten(1).norm(dim=1)  # [B]
        g = g / expand(size + self.damping / self.sigma_data, g)
        error = ((out - out.detach() - g) ** 2).flatten(1).mean(1)  # [B]
        if self.prior:
            error = error * self.trig_time(f.path, t)[0].tan().to(error) ** -self.prior
        logs = {"tangent": size.mean(), "rise": torch.tensor(r, device=t.device)}
        if "weight" not in roles:
            yield "net", error.mean(), logs
            return
        u = roles["weight"].net(f.path.lam(t).clamp(-MAX_LAM, MAX_LAM).float() / 4).to(error)
        yield ("net", "weight"), (error / u.exp() + u).mean(), {**logs, "error": error.detach().mean()}

    def tangent_warmup(self, update: int) -> float:
        """Return r, the share of the unstable half of the tangent."""
        return min(1.0, update / self.warmup) if self.warmup else 1.0

    def output_and_tangent(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor, r: float) -> tuple[Tensor, Tensor]:
        """Return F and its tangent g, not yet normalised, both [B, ...], at times t [B]; g carries no gradient."""
        f, eps = roles["net"], batch.normal("eps")
        x = f.path.mix(batch.x, eps, t)
        v = velocity_target(roles, batch, x, eps, t, cond, self.velocity, self.guide)
        angle, rate, std = self.trig_time(f.path, t)
        cos, sin = (expand(c, x) for c in (angle.cos(), angle.sin()))

        def output(x: Tensor, t: Tensor) -> Tensor:
            return self.trig_output(f, x, t, cond)

        out = output(x, t)
        # cos sin da goes into the tangents, as the paper has it: dF/da itself may overflow at both ends.
        dt = angle.cos() * angle.sin() / rate  # for which the angle changes by cos sin
        change = directional_derivative(output, x, t, expand(dt, x) * f.path.velocity(v, t), dt, self.derivative)
        dy = cos * v.eps - sin * v.x0 / self.sigma_data
        g = -(cos**2) * (out.detach() - dy) - r * (cos * sin * x / expand(std, x) + change)
        return out, g

    def trig_output(self, f: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return F = cos(a) eps - sin(a) x0 / sigma_data, of the network's prediction."""
        pred, angle = f(x, t, cond), self.trig_time(f.path, t)[0]
        return expand(angle.cos(), x) * pred.eps - expand(angle.sin(), x) * pred.x0 / self.sigma_data

    def trig_time(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, da / dt and the deviation sqrt(alpha^2 sigma_data^2 + sigma^2) of x_t."""
        alpha, sigma = path.alpha(t) * self.sigma_data, path.sigma(t)
        rate = (path.dsigma(t) * alpha - path.dalpha(t) * self.sigma_data * sigma) / (alpha**2 + sigma**2)
        return torch.atan2(sigma, alpha), rate, (alpha**2 + sigma**2).sqrt()

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean square of the tangent, not normalised, at 8 fixed times: 0 for the teacher's exact map."""

        def losses(t: Tensor) -> Tensor:
            return self.output_and_tangent(roles, batch, batch.cond, t, 1.0)[1].square()

        return mean_at_fixed_times(self.times, roles["net"].path, batch, losses)
