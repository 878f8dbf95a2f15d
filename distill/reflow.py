"""Reflow: retrain on the teacher's own noise-data pairs, whose paths cross no more and can be walked in one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.denoiser import Denoiser, DenoiserLike
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.times import UShaped
from gen.distillers.distances.huber import Huber
from gen.distillers.lib.pairs import noise_of, pairs_of
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = ["Reflow"]

LEAST = 1e-5  # the t at which 1 / t stops growing, as in rf++'s code


@dataclass(frozen=True)
class Reflow:
    """Regression of the network's output along the straight line between each pair (Liu et al. 2022; rf++, 2024).

    Loss (sqrt(|error|^2 + c^2) - c) / d with c = huber d, the pseudo-Huber of rf++ (section 4.2), d the number of
    elements. times: rf++'s U-shape trains all steps; Point(1) trains nothing but the first, a one-step student.
    pairs, teacher_sampler: how many pairs are made before training, and how. store: the folder they are in, to share
    them between students (default: the student's own).

    premetric: a distance of gen.distillers.distances between x0(x_t) and x; the loss is then (1 - t) Huber + premetric,
    rf++'s configuration E with lpips, and F with over_t: (1 - t) Huber + premetric / t. real: the teacher is a student
    of reflow; its ODE tells the noise of the real data, and the pairs are these (configuration G). A teacher on another
    path becomes a velocity on the flow path, exactly (gen.models.reparameterised).
    """

    pairs: int = 16_384
    teacher_sampler: Sampler = field(default_factory=lambda: Sampler(steps=16))
    times: Any = part("diffusion.times", default=UShaped())
    huber: float = 0.00054
    premetric: Any = part("distillers.distances", default=None)
    over_t: bool = False
    real: bool = False
    store: str | None = None

    def __post_init__(self) -> None:
        if self.pairs < 1 or not self.huber > 0:
            raise UserError(f"Reflow: pairs = {self.pairs}, huber = {self.huber}; both must be positive")
        if self.over_t and self.premetric is None:
            raise UserError("Reflow: over_t = True divides the premetric by t, and there is none: give one, e.g. lpips")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, on its pairs, from its weights."""
        check_state(run.model.build(), "reflow")
        if not isinstance(run.path, Flow):
            model = build(
                "models", "reparameterised", inner=run.model, path=run.path, parameterisation=run.parameterisation
            )
            run = replace(run, model=model, path=Flow(), parameterisation=Velocity())
        data = pairs_of(run, teacher, folder, self.pairs, self.teacher_sampler, self.store, self.real)
        return replace(
            run, objective=self, data=data, teacher=None, init=str(teacher), sampler=Sampler("euler", steps=1)
        )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = self.times.at(batch.noise.uniform("t"), f.path).to(batch.x.device)
        terms = self.terms(f, batch, t)
        logs = {name: value.mean() for name, value in terms.items()} if len(terms) > 1 else {}
        yield "net", torch.stack(list(terms.values())).sum(0).mean(), logs

    def losses(self, f: Denoiser, batch: Batch, t: Tensor) -> Tensor:
        """The loss of each pair, [B], at times t [B]."""
        return torch.stack(list(self.terms(f, batch, t).values())).sum(0)

    def terms(self, f: Denoiser, batch: Batch, t: Tensor) -> dict[str, Tensor]:
        """What the loss of each pair is the sum of, [B] each."""
        z, cond = noise_of(batch, "Reflow")
        x_t = f.path.mix(batch.x, z, t)
        out = f.output(x_t, t, cond)
        target = f.parameterisation.target(f.path, batch.x, z, t)
        huber = Huber(self.huber * batch.x[0].numel(), per="sample")(out, target)
        if self.premetric is None:
            return {"huber": huber}
        away = self.premetric(f.parameterisation.solve(f.path, x_t, out, t).x0, batch.x)
        if self.over_t:
            away = away / f.path.sigma(t).clamp(min=LEAST).to(away)
        return {"huber": f.path.alpha(t).to(huber) * huber, "premetric": away}

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss at 8 fixed times on pairs held out."""
        f = roles["net"]
        at = self.times.fixed(f.path).to(batch.x.device)
        return torch.stack([self.losses(f, batch, t.expand(len(batch.x))).mean() for t in at]).mean()
