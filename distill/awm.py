"""Advantage weighted matching: reinforcement learning by the loss that trained the teacher, weighted by advantages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import integrate
from gen.diffusion.times import Uniform
from gen.distillers.lib.rollout import advantages, evaluating, follow, frozen, grouped, judged, output_as, whole_groups
from gen.distillers.lib.teacher import require_teacher
from gen.distillers.rewards.classifier import Classifier
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = ["AWM", "extra_variance"]

CLIP = 5.0  # advantages beyond so many deviations count as such
TINY = 1e-10


@dataclass(frozen=True)
class AWM:
    """Lowers A g(m) + beta |out - reference|^2 + trust |out - trusted|^2 on the policy's own samples (Xue et al. 2025).

    m is the mean square error of the network's output against the target of a sample noised afresh, A the sample's
    advantage in its group, |A| <= 1, the squares means over elements. g(m) = ((m + 1e-10)^power - 1e-10^power) / power
    times (t / t1)^late: the published "ghuber" has power = 1/4, late = 1; power = 1, late = 0 is the plain error. The
    gradient is that of the likelihood ratio, which is 1 where each sample serves one update. Samples may come from any
    sampler, as no likelihood of its steps is needed.

    A sample with A < 0 pushes its error up without end. power < 1 needs some pull (beta + trust > 0) against that, and
    power = 1 needs beta + trust > 1, more than |A| can be; else the loss has no minimum, and is refused here.
    reference: the teacher. trusted: an average of the student's own weights, trust_decay of which stays each update.
    group: samples of one condition that are compared. draws: times per sample, in as many equal shares of `times`.
    """

    reward: Any = part("distillers.rewards", default=Classifier())
    rollout: Sampler = field(default_factory=lambda: Sampler("euler", steps=10))
    times: Any = part("diffusion.times", default=Uniform())
    group: int = 16
    draws: int = 6
    power: float = 0.25
    late: float = 1.0
    beta: float = 0.001
    trust: float = 1.0
    trust_decay: float = 0.3

    def __post_init__(self) -> None:
        if self.rollout.cache is not None:
            raise UserError(f"AWM: rollout.cache = {self.rollout.cache!r}; samples of a policy reuse no features")
        if self.group < 2 or self.draws < 1:
            raise UserError(f"AWM: group = {self.group}, draws = {self.draws}; they must be at least 2 and 1")
        if not (0 < self.power <= 1 and self.late >= 0 and 0 <= self.trust_decay < 1):
            raise UserError(
                f"AWM: power = {self.power}, late = {self.late}, trust_decay = {self.trust_decay}; allowed: (0, 1], "
                "not negative, [0, 1)"
            )
        pull, needed = self.beta + self.trust, 1.0 if self.power == 1 else 0.0
        if min(self.beta, self.trust) < 0 or pull <= needed:
            raise UserError(
                f"AWM: beta + trust = {pull:g}: advantages of -1 make the loss unbounded below; with power = "
                f"{self.power:g} beta + trust must be above {needed:g}, neither negative"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run from its weights, short and at a tenth of its learning rate."""
        optim = replace(run.optim, lr=run.optim.lr / 10)
        return replace(run, objective=self, teacher=str(teacher), init=str(teacher), optim=optim, steps=200)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_state(net, "AWM")
        require_teacher("AWM", teacher)
        return {"net": net, "trusted": frozen(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        x0, cond = self.sample(f, batch)
        reward, logs = judged(self.reward, x0, cond, self.group)
        advantage = advantages(reward, self.group, CLIP) / CLIP
        losses, more = self.losses(roles, batch, x0, cond, advantage)
        yield "net", losses.mean(), {**logs, "advantage_abs": advantage.abs().mean(), **more}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """The trusted weights follow."""
        follow(roles["trusted"].net, roles["net"].net, self.trust_decay)

    @torch.no_grad()
    def sample(self, f: Denoiser, batch: Batch) -> tuple[Tensor, Cond]:
        """The policy's samples, shaped as the batch, and their condition, each for a whole group."""
        how, cond = self.rollout, grouped(batch.cond, len(batch.x), self.group)
        times = how.grid.times(f.path, how.steps)
        walker: DenoiserLike = f if how.guide is None else how.guide(f, times)
        kept = times if how.guide is None else how.guide.grid(times)
        with evaluating(f):
            start = f.path.start(batch.normal("start"), times[0])
            x0 = integrate(walker, start, kept, how.solver, cond=cond, noise=batch.noise)
        return x0, cond

    def losses(
        self, roles: Roles, batch: Batch, x0: Tensor, cond: Cond, advantage: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each sample at each of its times, [draws * B], and logs."""
        f, k = roles["net"], self.draws
        shares = [(i + batch.noise.uniform(f"t.{i}")) / k for i in range(k)]
        t = self.times.at(torch.cat(shares), f.path).to(x0.device)  # [draws * B], as all below
        eps = torch.cat([batch.normal(f"eps.{i}") for i in range(k)])
        x0, cond = torch.cat([x0] * k), {name: torch.cat([v] * k) for name, v in cond.items()}
        x = f.path.mix(x0, eps, t)
        out = f.output(x, t, cond).double()
        with torch.no_grad():
            reference = output_as(f, roles["teacher"], x, t, cond)
            trusted = roles["trusted"].output(x, t, cond)
        m = _mean_square(out, f.parameterisation.target(f.path, x0, eps, t))
        matched = self.surrogate(m, t / f.path.t1)
        to_reference, to_trusted = _mean_square(out, reference), _mean_square(out, trusted)
        losses = advantage.to(m).repeat(k) * matched + self.beta * to_reference + self.trust * to_trusted
        logs = {"match": m.mean(), "reference_distance": to_reference.mean(), "trust_distance": to_trusted.mean()}
        return losses, logs

    def surrogate(self, m: Tensor, late: Tensor) -> Tensor:
        """g(m), minus what stands for a sample's log-likelihood; [B] float64, late = t / t1."""
        root: Tensor = (m + TINY) ** self.power - TINY**self.power
        return root * late**self.late / self.power

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Minus the mean reward on fixed noise."""
        x0, cond = self.sample(roles["net"], whole_groups(batch, self.group))
        return -judged(self.reward, x0, cond, self.group)[0].mean()


def extra_variance(path: NoisePath, t: Tensor, s: Tensor) -> Tensor:
    """n_t^2 n_s^2 / (n_t^2 - n_s^2) with n = sigma / alpha: the variance that one step's likelihood adds to its target.

    The likelihood of a stochastic step x_t -> x_s (DDPO, Flow-GRPO) is denoising with x_s in the place of the data: it
    has the same minimiser, and a target for x0 whose variance given x_t is larger by this.
    """
    n_t, n_s = (path.sigma(t) / path.alpha(t)) ** 2, (path.sigma(s) / path.alpha(s)) ** 2
    return n_t * n_s / (n_t - n_s)


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    """[B, ...] and the same to [B]."""
    return ((a - b) ** 2).flatten(1).mean(1)
