"""Advantage weighted matching: reinforcement learning by the loss that trained the teacher, weighted by advantages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.sampling import integrate
from gen.diffusion.times import Natural, Times
from gen.distillers.lib.networks import ema_update, eval_mode, frozen_copy, output_as
from gen.distillers.lib.policy import PolicyOptimisation, group_advantages, group_condition
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Sampler

__all__ = ["AWM"]

ADVANTAGE_CLIP = 5.0  # deviations
TINY = 1e-10


@dataclass(frozen=True)
class AWM(PolicyOptimisation):
    """Advantage weighted matching (Xue et al. 2025): the teacher's training loss, weighted by advantages.

    On the policy's own samples the loss is A g(m) + beta |out - reference|^2 + trust |out - trusted|^2. m is the mean
    square error of the network's output against the target of a sample noised afresh, A the sample's advantage in its
    group, |A| <= 1, the squares means over elements. g(m) = ((m + 1e-10)^power - 1e-10^power) / power times (t /
    t1)^time_power. The gradient is that of the likelihood ratio, which is 1 where each sample serves one update.
    Samples may come from any sampler, as no likelihood of its steps is needed. reference is the teacher, trusted an
    average of the student's own weights, the role "trusted".

    A sample with A < 0 pushes its error up without end. power < 1 needs some pull (beta + trust > 0) against that, and
    power = 1 needs beta + trust > 1, more than |A| can be; else the loss has no minimum, and is refused here.

    Attributes:
        rollout: how the policy is sampled, without a cache.
        times: density of t, of which each sample gets one draw in each of `times_per_sample` equal shares.
        times_per_sample: at least 1.
        power, time_power: of g, in (0, 1] and at least 0; the published "ghuber" is 1/4 and 1, the plain error 1 and 0.
        beta, trust: weights of the two pulls, at least 0.
        trust_decay: share of the trusted weights that stays at each update, in [0, 1).
    """

    rollout: Sampler = field(default_factory=lambda: Sampler("euler", steps=10))
    times: Times = part("diffusion.times", default=Natural())
    times_per_sample: int = 6
    power: float = 0.25
    time_power: float = 1.0
    beta: float = 0.001
    trust: float = 1.0
    trust_decay: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, times_per_sample="[1, inf)", power="(0, 1]", time_power="[0, inf)", trust_decay="[0, 1)")
        check_fields(self, beta="[0, inf)", trust="[0, inf)")
        if self.rollout.cache is not None:
            raise UserError(f"AWM: rollout.cache = {self.rollout.cache!r}; samples of a policy reuse no features")
        pull, needed = self.beta + self.trust, 1.0 if self.power == 1 else 0.0
        if pull <= needed:
            raise UserError(
                f"AWM: beta + trust = {pull:g}: advantages of -1 make the loss unbounded below; with power = "
                f"{self.power:g} beta + trust must be above {needed:g}"
            )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {**super().roles(net, teacher), "trusted": frozen_copy(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        x0, cond = self.sample(roles["net"], batch)
        reward, logs = self.rewards(x0, cond)
        advantage = group_advantages(reward, self.group_size, ADVANTAGE_CLIP) / ADVANTAGE_CLIP
        losses, more = self.losses(roles, batch, x0, cond, advantage)
        yield "net", losses.mean(), {**logs, "advantage_abs": advantage.abs().mean(), **more}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Update the trusted weights."""
        ema_update(roles["trusted"].net, roles["net"].net, self.trust_decay)

    @torch.no_grad()
    def sample(self, f: DenoiserLike, batch: Batch) -> tuple[Tensor, Cond]:
        """Return the policy's samples, shaped as the batch, and their condition, the same within a group."""
        how, cond = self.rollout, group_condition(batch.cond, len(batch.x), self.group_size)
        times = grid = how.grid.times(f.path, how.steps)
        guided = f
        if how.guide is not None:
            guided, grid = how.guide(f, times), how.guide.grid(times)
        with eval_mode(f):
            start = f.path.start(batch.normal("start"), times[0])
            return integrate(guided, start, grid, how.solver, cond=cond, noise=batch.noise), cond

    def losses(
        self, roles: Roles, batch: Batch, x0: Tensor, cond: Cond, advantage: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each sample at each of its times, [times_per_sample * B], and logs."""
        f, k = roles["net"], self.times_per_sample
        shares = [(i + batch.noise.uniform(f"t.{i}")) / k for i in range(k)]
        t = self.times.at(torch.cat(shares), f.path).to(x0.device)  # [k B], as all below
        eps = torch.cat([batch.normal(f"eps.{i}") for i in range(k)])
        x0, cond = torch.cat([x0] * k), {name: torch.cat([v] * k) for name, v in cond.items()}
        x = f.path.mix(x0, eps, t)
        out = f.output(x, t, cond).double()
        with torch.no_grad():
            reference = output_as(f, roles["teacher"], x, t, cond)
            trusted = roles["trusted"].output(x, t, cond)
        m = _mean_square(out, f.parameterisation.target(f.path, x0, eps, t))
        to_reference, to_trusted = _mean_square(out, reference), _mean_square(out, trusted)
        matching = advantage.to(m).repeat(k) * self.ghuber(m, t / f.path.t1)
        logs = {"match": m.mean(), "reference_distance": to_reference.mean(), "trust_distance": to_trusted.mean()}
        return matching + self.beta * to_reference + self.trust * to_trusted, logs

    def ghuber(self, m: Tensor, t: Tensor) -> Tensor:
        """Return g(m) [B], the stand-in for minus a sample's log-likelihood; t in units of t1."""
        return ((m + TINY) ** self.power - TINY**self.power) * t**self.time_power / self.power


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    """The mean square difference of each sample, [B]."""
    return ((a - b) ** 2).flatten(1).mean(1)
