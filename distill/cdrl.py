"""CDRL: an energy for every noise level, trained by samples that an initialiser begins and Langevin steps refine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath, expand
from gen.samplers.solvers.recovery import Recovery
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state, drop_condition
from gen.training.run import Run, Sampler

__all__ = ["CDRL", "inpaint", "log_density", "novelty"]


@dataclass(frozen=True)
class CDRL:
    """Cooperative diffusion recovery likelihood (Zhu et al. 2024) with the model `cooperative`.

    From a pair x_t, x_s of neighbouring levels of the sampler's grid the initialiser guesses x_s, and Langevin steps on
    the energy's recovery posterior p(x_s | x_t) refine the guess. The energy's loss is sigma_s (log p_s(refined) -
    log p_s(x_s)) per element, whose gradient is that of the recovery likelihood; it is no measure of quality, and near
    0 when all is well. The initialiser's is |refined - its mean|^2 / V, V the variance it draws with.
    sampler: the levels, its grid's times but 0, and the Langevin steps; also how the student samples.
    """

    sampler: Sampler = field(default_factory=lambda: Sampler(Recovery(initialiser="target"), steps=6))
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        solver = self.sampler.solver
        if not isinstance(solver, Recovery) or solver.initialiser != "target" or solver.refine < 1:
            raise UserError(
                "CDRL: sampler.solver must be recovery with initialiser = target and at least one step refine"
            )
        if self.sampler.steps < 2 or not 0 <= self.class_dropout <= 1:
            raise UserError(
                f"CDRL: sampler.steps = {self.sampler.steps}, class_dropout = {self.class_dropout}; allowed: at least "
                "2, [0, 1]"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run for two of its networks, energy and initialiser, both from its weights."""
        model = build("models", {"name": "cooperative", "inner": spec_of(run.model)})
        optim = replace(run.optim, lr=run.optim.lr / 10)
        return replace(run, model=model, objective=self, init=str(teacher), optim=optim, sampler=self.sampler)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_state(net, "CDRL")
        if not hasattr(net, "potential") or not hasattr(net, "initialiser"):
            raise UserError("CDRL trains the model cooperative, an energy with its initialiser; set model.name")
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        cond = drop_condition(f, batch, self.class_dropout)
        times = self.sampler.grid.times(f.path, self.sampler.steps).to(batch.x.device)
        level = batch.noise.integers("level", self.sampler.steps - 1).to(batch.x.device)
        energy, first, logs = self.losses(f, batch, cond, times[level], times[level + 1])
        yield "net", (energy + first).mean(), {"energy_loss": energy.mean(), "initialiser_loss": first.mean(), **logs}

    def losses(
        self, f: Denoiser, batch: Batch, cond: Cond, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The losses of energy and initialiser for each sample, [B] both, and logs; levels t > s, [B]."""
        path, solver = f.path, self.sampler.solver
        x_s = path.mix(batch.x, batch.normal("eps"), s)
        x_t = climb(path, x_s, batch.normal("climb"), t, s)
        mean, variance = solver.ancestral_step(path, f(x_t, t, cond, s=s), t, s)
        with torch.no_grad():
            begun = mean + expand(variance.sqrt(), mean) * batch.normal("begin")
            units = [batch.normal(f"langevin.{k}") for k in range(solver.refine)]
            refined = solver.langevin(partial(f, cond=cond), path, x_t, begun, t, s, units)
        real, made = log_density(f, x_s, s, cond), log_density(f, refined, s, cond)
        energy = path.sigma(s).to(real) * (made - real) / x_s[0].numel()
        first = ((refined - mean) ** 2 / expand(variance, mean)).flatten(1).mean(1)
        moved = ((refined - begun) ** 2 / expand(variance, mean)).flatten(1).mean(1).sqrt()
        logs = {"log_density": real.detach().mean(), "log_density_made": made.detach().mean(), "moved": moved.mean()}
        return energy, first, logs | {"sample_std": refined.std() / x_s.std()}

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The initialiser's loss at every level: the energy's own says nothing of quality."""
        f = roles["net"]
        times = self.sampler.grid.times(f.path, self.sampler.steps).to(batch.x.device)
        found = []
        for t, s in itertools.pairwise(times[:-1]):
            n = len(batch.x)
            found.append(self.losses(f, batch, batch.cond, t.expand(n), s.expand(n))[1].mean())
        return torch.stack(found).mean()


def climb(path: NoisePath, x: Tensor, unit: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_t from x_s and fresh unit noise, t > s: r x_s + sqrt(sigma_t^2 - r^2 sigma_s^2) unit, r = alpha_t / alpha_s."""
    r = path.alpha(t) / path.alpha(s)
    v = path.sigma(t) ** 2 - (r * path.sigma(s)) ** 2
    return expand(r, x) * x + expand(v.sqrt(), x) * unit


def log_density(f: Denoiser, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """log p_t(x) of an energy model, [B] float64, up to a constant of t and cond: -<x, eps(x)> / (2 sigma).

    Differentiable in x and in the weights. UserError for a denoiser that is the slope of nothing.
    """
    net: Any = unwrap(f.net)
    if not hasattr(net, "potential"):
        raise UserError(f"{type(net).__name__} has no density; allowed: the models energy and cooperative")
    t = t.expand(len(x))
    scale = f.parameterisation.scale(f.path, t).to(x.device)
    a, _ = f.parameterisation.coefficients(f.path, t)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    t_to_network = f.path.t_to_network(t).to(device=x.device, dtype=dtype)
    product = net.potential(expand(scale, x) * x, t_to_network, cond or {}).double() / scale.double()  # <x, o(x)> / 2
    square = (x.double() ** 2).flatten(1).sum(1) / 2
    alpha, sigma, det = (c.to(product) for c in (f.path.alpha(t), f.path.sigma(t), f.parameterisation.det(f.path, t)))
    noise: Tensor = (alpha * product - a.to(product) * square) / det  # <x, eps(x)> / 2
    return -noise / sigma


def novelty(f: Denoiser, x: Tensor, t: float, cond: Cond | None = None) -> Tensor:
    """How unlikely clean samples x [B, ...] are, [B]: -log p_t at alpha x, to be compared at one t and condition only.

    t: small, such as the last level of the sampler's grid before 0.
    """
    time = torch.tensor(t, dtype=torch.float64)
    with torch.no_grad():
        return -log_density(f, expand(f.path.alpha(time), x) * x, time, cond)


@torch.no_grad()
def inpaint(
    f: DenoiserLike,
    known: Tensor,
    missing: Tensor,
    times: Tensor,
    solver: Recovery,
    noise: Noise,
    cond: Cond | None = None,
) -> Tensor:
    """known [B, ...] where `missing` (bool, shaped alike) is False; elsewhere what the model makes of the rest.

    One trajectory of the known part is drawn from the data up; on the way down it takes its place after every Langevin
    step, which so sample the missing part of each level given the known. times: falling, to 0.
    """
    unit = {i: noise.normal(f"known.{i}", known.shape[1:]).to(known) for i in range(len(times))}
    seen = {len(times) - 2: f.path.mix(known, unit[len(times) - 2], times[-2])}
    for i in reversed(range(len(times) - 2)):
        seen[i] = climb(f.path, seen[i + 1], unit[i], times[i], times[i + 1])

    def keep(x: Tensor, i: int) -> Tensor:
        return torch.where(missing, x, seen[i])

    x = keep(f.path.start(noise.normal("start", known.shape[1:]).to(known), times[0]), 0)
    for i, (t, s) in enumerate(itertools.pairwise(times[:-1])):
        pred = f(x, t, cond, s=s) if solver.initialiser == "target" else f(x, t, cond)
        mean, variance = solver.ancestral_step(f.path, pred, t, s)
        begun = mean + expand(variance.sqrt(), mean) * noise.normal(f"begin.{i}", known.shape[1:]).to(known)
        units = (noise.normal(f"langevin.{i}.{k}", known.shape[1:]).to(known) for k in range(solver.refine))
        here = partial(keep, i=i + 1)
        x = solver.langevin(partial(f, cond=cond), f.path, x, here(begun), t, s, units, here)
    return torch.where(missing, f(x, times[-2], cond).x0, known)
