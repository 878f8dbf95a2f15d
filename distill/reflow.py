"""Reflow: retrain on the teacher's own noise-data pairs, whose trajectories cross no more and take one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import build, part
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.times import Times, UShaped
from gen.distillers.distances import Distance
from gen.distillers.distances.huber import Huber
from gen.distillers.lib.pairs import PairDistillation, pair_noise
from gen.distillers.lib.times import draw_times, mean_at_fixed_times
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run

__all__ = ["Reflow"]

MIN_T = 1e-5  # at which 1 / t stops growing, as in rf++'s code


@dataclass(frozen=True)
class Reflow(PairDistillation):
    """Reflow of rectified flows (Liu et al. 2022; rf++, Lee et al. 2024): regression along the line between each pair.

    The loss is (sqrt(|error|^2 + c^2) - c) / d with c = huber d, the pseudo-Huber of rf++ (section 4.2), d the number
    of elements. A teacher on another path becomes a velocity on the flow path, exactly (gen.models.reparameterised).

    Attributes:
        times: density of t; rf++'s U-shape trains all steps, Point(1) nothing but the first: a one-step student.
        huber: c / d, positive; the code's.
        premetric: a distance between x0(x_t) and x; the loss is then (1 - t) Huber + premetric, rf++'s configuration E
            with lpips. None for none.
        premetric_over_t: divides the premetric by t, configuration F.
    """

    times: Times = part("diffusion.times", default=UShaped())
    huber: float = 0.00054
    premetric: Distance | None = part("distillers.distances", default=None)
    premetric_over_t: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, huber="(0, inf)")
        if self.premetric_over_t and self.premetric is None:
            raise UserError("Reflow: premetric_over_t = True, and there is no premetric: give one, e.g. lpips")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run on its pairs, on the flow path, from its weights, sampled in one Euler step."""
        if not isinstance(run.path, Flow) and hasattr(run.model, "found"):  # no spec that another model wraps
            raise UserError(f"Reflow learns on the path flow, and this network, on {run.path}, would be another one "
                            "there: take rectified_diffusion or knowledge")  # fmt: skip
        if not isinstance(run.path, Flow):
            model = build(
                "models", "reparameterised", inner=run.model, path=run.path, parameterisation=run.parameterisation
            )
            run = replace(run, model=model, path=Flow(), parameterisation=Velocity())
        return super().student(run, teacher, folder)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = draw_times(self.times, batch, "t", f.path)
        terms = self.terms(f, batch, t)
        logs = {name: value.mean() for name, value in terms.items()} if len(terms) > 1 else {}
        yield "net", torch.stack(list(terms.values())).sum(0).mean(), logs

    def losses(self, f: Denoiser, batch: Batch, t: Tensor) -> Tensor:
        """Return the loss of each pair, [B], at times t [B]."""
        return torch.stack(list(self.terms(f, batch, t).values())).sum(0)

    def terms(self, f: Denoiser, batch: Batch, t: Tensor) -> dict[str, Tensor]:
        """Return the terms whose sum is the loss of each pair, [B] each, at times t [B]."""
        z, cond = pair_noise(batch, "Reflow")
        x_t = f.path.mix(batch.x, z, t)
        out = f.output(x_t, t, cond)
        target = f.parameterisation.target(f.path, batch.x, z, t)
        huber = Huber(self.huber * batch.x[0].numel(), per="sample")(out, target)
        if self.premetric is None:
            return {"huber": huber}
        premetric = self.premetric(f.parameterisation.solve(f.path, x_t, out, t).x0, batch.x)
        if self.premetric_over_t:
            premetric = premetric / f.path.sigma(t).clamp(min=MIN_T).to(premetric)
        return {"huber": f.path.alpha(t).to(huber) * huber, "premetric": premetric}

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss at 8 fixed times on held-out pairs."""
        f = roles["net"]
        return mean_at_fixed_times(self.times, f.path, batch, lambda t: self.losses(f, batch, t))
