"""MeanFlow: a network that predicts the average velocity between any two times, so that one jump spans them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import Prediction, expand
from gen.diffusion.times import LogitNormal, Times
from gen.distillers.lib.jvp import Derivative, directional_derivative
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

__all__ = ["MeanFlow"]


@dataclass(frozen=True)
class MeanFlow(Distiller):
    """MeanFlow (Geng et al. 2025): a flow map by regression on an identity of average velocities.

    The identity is u = v - (t - s) du/dt, du/dt along the flow (eq. 11). u(x, t, s) = (x_t - x_s) / (t - s) is the
    average of the velocity v, here eps - x0 (see tau_of_t for paths that are not Flow); du/dt is the network's own,
    without gradient. Loss |error|^2 / (|error|^2 + damping)^power, |.|^2 a sum over elements and the divisor without
    gradient (eq. 22). The loss says little of the samples: it is a fraction of itself, and its target moves.

    Guidance inside (eq. 21 and appendix B.1): v is replaced by omega v + kappa u(x, t, t | cond) + (1 - omega - kappa)
    u(x, t, t | null), an effective scale of omega / (1 - kappa); rows whose condition was dropped keep v.

    Attributes:
        times: t and s are two draws of it, in order; the paper's.
        flow_share: share of the samples with s = t, plain flow matching, in [0, 1]; the paper's.
        velocity: v of the pair at hand ("data"), as published, or of the "teacher".
        guide: on the teacher; None for none.
        omega, kappa: of guidance inside, omega > 0, 0 <= kappa < 1; 1 and 0 for none.
        guidance_interval: the t / t1 with guidance inside, both ends included.
        class_dropout: probability that a condition is replaced by the null one; the code's.
        power, damping: p and c of the adaptive weight, at least 0 and positive; the paper's for ImageNet. CIFAR-10
            has 0.75 and 1e-3.
        derivative: see directional_derivative.
    """

    times: Times = part("diffusion.times", default=LogitNormal(-0.4, 1.0))
    flow_share: float = 0.75
    velocity: VelocitySource = "data"
    guide: Guide | None = part("samplers.guides", default=None)
    omega: float = 1.0
    kappa: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    class_dropout: float = 0.1
    power: float = 1.0
    damping: float = 0.01
    derivative: Derivative = "jvp"

    def __post_init__(self) -> None:
        check_fields(self, flow_share="[0, 1]", omega="(0, inf)", kappa="[0, 1)", guidance_interval="[0, 1]")
        check_fields(self, class_dropout="[0, 1]", power="[0, inf)", damping="(0, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run with a flow map, from its weights, sampled in one jump."""
        return flow_map_student(run, teacher, self, self.velocity)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("MeanFlow", net, teacher, self.velocity, self.guide)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        draws = torch.stack([self.times.at(batch.noise.uniform(name), f.path) for name in ("t", "s")])
        t, s = batch.to_device(draws.amax(0)), batch.to_device(draws.amin(0))
        s = torch.where(batch.to_device(batch.noise.uniform("equal")) < self.flow_share, t, s)
        error = self.errors(roles, batch, drop_condition(f, batch, self.class_dropout), t, s)  # [B, ...]
        square = (error.float() ** 2).flatten(1).sum(1)  # [B]
        loss = square / (square.detach() + self.damping) ** self.power
        yield "net", loss.mean(), {"error": square.detach().mean() / batch.x[0].numel()}

    def errors(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor, s: Tensor) -> Tensor:
        """Return u(x_t, t, s) less its target, [B, ...], at times s <= t, both [B]."""
        f, eps = roles["net"], batch.normal("eps")
        x = f.path.mix(batch.x, eps, t)
        v = velocity_target(roles, batch, x, eps, t, cond, self.velocity, self.guide)
        v = self.guided(f, x, t, cond, v)
        target = velocity_in_tau(v)
        rows = s < t  # where s = t the target is v itself
        if bool(rows.any()):
            target[rows] -= self.derivative_term(f, x, v, t, cond, s, rows)
        return velocity_in_tau(f(x, t, cond, s=s)) - target

    def derivative_term(
        self, f: Denoiser, x: Tensor, v: Prediction, t: Tensor, cond: Cond, s: Tensor, rows: Tensor
    ) -> Tensor:
        """Return (tau_t - tau_s) du / d tau along the flow, of some rows."""
        cond, t, s, x = {k: c[rows] for k, c in cond.items()}, t[rows], s[rows], x[rows]
        tau, rate = tau_of_t(f.path, t)
        dx = f.path.velocity(Prediction(v.x0[rows], v.eps[rows]), t) / expand(rate, x)

        def u(x: Tensor, t: Tensor) -> Tensor:
            return velocity_in_tau(f(x, t, cond, s=s))

        du = directional_derivative(u, x, t, dx, 1 / rate, self.derivative)
        return expand(tau - tau_of_t(f.path, s)[0], x) * du

    @torch.no_grad()
    def guided(self, f: Denoiser, x: Tensor, t: Tensor, cond: Cond, v: Prediction) -> Prediction:
        """Return v under guidance by the network itself, where that is set."""
        if not cond or (self.omega == 1 and self.kappa == 0):
            return v
        low, high = (bound * f.path.t1 for bound in self.guidance_interval)
        rows = (t >= low) & (t <= high)
        null, rest = f.null(cond), 1 - self.omega - self.kappa
        rows &= torch.stack([(cond[k] != c).reshape(len(c), -1).any(1) for k, c in null.items()]).any(0)
        with_cond, without = f(x, t, cond, s=t), f(x, t, null, s=t)
        mixed = [self.omega * v + self.kappa * c + rest * u for v, c, u in zip(v, with_cond, without, strict=True)]
        return Prediction(*(torch.where(expand(rows, x).bool(), new, old) for new, old in zip(mixed, v, strict=True)))

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean square of the errors at 8 fixed times t, each with s = t, t / 2 and 0."""
        at = batch.to_device(self.times.fixed(roles["net"].path))
        pairs = [(t.expand(len(batch.x)), t.expand(len(batch.x)) * part) for t in at for part in (1.0, 0.5, 0.0)]
        return torch.stack([self.errors(roles, batch, batch.cond, t, s).square().mean() for t, s in pairs]).mean()
