"""CDRL: an energy for every noise level, trained by samples of an initialiser that Langevin steps refine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import build, spec_of
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.noise import Noise
from gen.diffusion.path import expand
from gen.samplers.solvers.recovery import Recovery
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state, drop_condition
from gen.training.run import Run, Sampler

__all__ = ["CDRL", "inpaint", "log_density", "negative_log_density"]


@dataclass(frozen=True)
class CDRL(Distiller):
    """Cooperative diffusion recovery likelihood (Zhu et al. 2024) with the model `cooperative`.

    From a pair x_t, x_s of neighbouring levels of the sampler's grid the initialiser guesses x_s, and Langevin steps on
    the energy's recovery posterior p(x_s | x_t) refine the guess. The energy's loss is sigma_s (log p_s(refined) -
    log p_s(x_s)) per element, whose gradient is that of the recovery likelihood; it is no measure of quality, and near
    0 when all is well. The initialiser's is |refined - its mean|^2 / V, V the variance it draws with.

    Attributes:
        sampler: the levels, its grid's times but 0, and the Langevin steps; also the student's sampler.
        class_dropout: probability that a condition is replaced by the null one.
    """

    sampler: Sampler = field(default_factory=lambda: Sampler(Recovery(initialiser="target"), steps=6))
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, class_dropout="[0, 1]")
        solver = self.sampler.solver
        if not isinstance(solver, Recovery) or solver.initialiser != "target" or solver.refine < 1:
            raise UserError(
                "CDRL: sampler.solver must be recovery with initialiser = target and at least one step refine"
            )
        if self.sampler.steps < 2:
            raise UserError(f"CDRL: sampler.steps = {self.sampler.steps}; it must be at least 2")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run with two of its networks, energy and initialiser, both from its weights."""
        model = build("models", {"name": "cooperative", "inner": spec_of(run.model)})
        optim = replace(run.optim, lr=run.optim.lr / 10)
        return replace(
            run, model=model, objective=self, teacher=None, init=str(teacher), optim=optim, sampler=self.sampler
        )

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
        energy, initialiser, logs = self.losses(f, batch, cond, times[level], times[level + 1])
        logs |= {"energy_loss": energy.mean(), "initialiser_loss": initialiser.mean()}
        yield "net", (energy + initialiser).mean(), logs

    def losses(
        self, f: Denoiser, batch: Batch, cond: Cond, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the losses of energy and initialiser for each sample, [B] both, and logs; levels t > s, [B]."""
        path, solver = f.path, self.sampler.solver
        x_s = path.mix(batch.x, batch.normal("eps"), s)
        x_t = path.diffuse(x_s, batch.normal("climb"), t, s)
        mean, variance = solver.ancestral_step(path, f(x_t, t, cond, s=s), t, s)
        with torch.no_grad():
            guess = mean + expand(variance.sqrt(), mean) * batch.normal("begin")
            units = [batch.normal(f"langevin.{k}") for k in range(solver.refine)]
            refined = solver.langevin(partial(f, cond=cond), path, x_t, guess, t, s, units)
        real, sampled = log_density(f, x_s, s, cond), log_density(f, refined, s, cond)
        energy = path.sigma(s).to(real) * (sampled - real) / x_s[0].numel()
        initialiser = ((refined - mean) ** 2 / expand(variance, mean)).flatten(1).mean(1)
        moved = ((refined - guess) ** 2 / expand(variance, mean)).flatten(1).mean(1).sqrt()
        logs = {"log_density": real.detach().mean(), "log_density_sampled": sampled.detach().mean()}
        return energy, initialiser, logs | {"moved": moved.mean(), "sample_std": refined.std() / x_s.std()}

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the initialiser's loss at every level: the energy's own says nothing of quality."""
        f, n = roles["net"], len(batch.x)
        times = self.sampler.grid.times(f.path, self.sampler.steps).to(batch.x.device)
        pairs = itertools.pairwise(times[:-1])
        return torch.stack(
            [self.losses(f, batch, batch.cond, t.expand(n), s.expand(n))[1].mean() for t, s in pairs]
        ).mean()


def log_density(f: Denoiser, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """Return log p_t(x) of an energy model, up to a constant of t and cond: -<x, eps(x)> / (2 sigma), [B] float64.

    Differentiable in x and in the weights.

    Args:
        f: the denoiser.
        x: states [B, ...].
        t: times, 0-d or [B].
        cond: the condition.

    Raises:
        UserError: for a denoiser that is no gradient of a potential.
    """
    net = unwrap(f.net)
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
    return -((alpha * product - a.to(product) * square) / det) / sigma  # -(<x, eps(x)> / 2) / sigma


@torch.no_grad()
def negative_log_density(f: Denoiser, x: Tensor, t: float, cond: Cond | None = None) -> Tensor:
    """Return -log p_t of clean samples at alpha x, [B], to be compared at one t and condition: their novelty.

    Args:
        f: the denoiser.
        x: clean samples [B, ...].
        t: a small time, such as the last level of the sampler's grid before 0.
        cond: the condition.
    """
    time = torch.tensor(t, dtype=torch.float64)
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
    """Sample the missing part of images given the rest.

    One trajectory of the known part is drawn from the data up; on the way down it replaces that part after every
    Langevin step, so that these sample the missing part of each level given the known.

    Args:
        f: the denoiser.
        known: images [B, ...].
        missing: True where they are not known, bool, shaped alike.
        times: falling times [N + 1], to 0.
        solver: the Langevin steps.
        noise: of all draws.
        cond: the condition.

    Returns:
        The completed images [B, ...].
    """
    unit = {i: noise.normal(f"known.{i}", known.shape[1:]).to(known) for i in range(len(times))}
    states = {len(times) - 2: f.path.mix(known, unit[len(times) - 2], times[-2])}
    for i in reversed(range(len(times) - 2)):
        states[i] = f.path.diffuse(states[i + 1], unit[i], times[i], times[i + 1])

    def keep_known(x: Tensor, i: int) -> Tensor:
        return torch.where(missing, x, states[i])

    x = keep_known(f.path.start(noise.normal("start", known.shape[1:]).to(known), times[0]), 0)
    for i, (t, s) in enumerate(itertools.pairwise(times[:-1])):
        pred = f(x, t, cond, s=s) if solver.initialiser == "target" else f(x, t, cond)
        mean, variance = solver.ancestral_step(f.path, pred, t, s)
        guess = mean + expand(variance.sqrt(), mean) * noise.normal(f"begin.{i}", known.shape[1:]).to(known)
        units = (noise.normal(f"langevin.{i}.{k}", known.shape[1:]).to(known) for k in range(solver.refine))
        project = partial(keep_known, i=i + 1)
        x = solver.langevin(partial(f, cond=cond), f.path, x, project(guess), t, s, units, project)
    return torch.where(missing, f(x, times[-2], cond).x0, known)
