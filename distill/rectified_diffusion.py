"""Rectified Diffusion: retrain on the teacher's pairs, in its own form, until eps stays along a trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.times import Natural, Times
from gen.distillers.distances import Distance
from gen.distillers.distances.huber import Huber
from gen.distillers.lib.pairs import PairDistillation, pair_noise
from gen.distillers.lib.times import draw_times, mean_at_fixed_times
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition

__all__ = ["RectifiedDiffusion"]


@dataclass(frozen=True)
class RectifiedDiffusion(PairDistillation):
    """Rectified Diffusion (Wang et al. 2024): regression of x0 on pairs, on any path and parameterisation.

    The loss is distance(x0(x_t), x) with x_t = alpha x + sigma z of a pair (x, z). What is straightened is the ODE in x
    / alpha and sigma / alpha: at the optimum eps is z throughout, so one step of Euler (DDIM) is exact (Wang et al.
    2024, section 3). The paper has pairs of a guided teacher at 25 steps.

    Attributes:
        times: density of t; the paper's.
        distance: of gen.distillers.distances; the paper's.
        space: "x0", or "output" to compare what the network itself predicts, for a prediction that says nothing of x0
            at t1 (eps where alpha = 0).
        class_dropout: probability that a condition is replaced by the null one.
    """

    times: Times = part("diffusion.times", default=Natural())
    distance: Distance = part("distillers.distances", default=Huber())
    space: Literal["x0", "output"] = "x0"
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, class_dropout="[0, 1]")

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = draw_times(self.times, batch, "t", f.path)
        z, cond = pair_noise(batch, "RectifiedDiffusion")
        cond = drop_condition(f, replace(batch, cond=cond), self.class_dropout)
        yield "net", self.losses(f, batch.x, z, cond, t).mean(), {}

    def losses(self, f: Denoiser, x: Tensor, z: Tensor, cond: Cond, t: Tensor) -> Tensor:
        """Return the loss of each pair, [B], at times t [B]."""
        x_t = f.path.mix(x, z, t)
        out = f.output(x_t, t, cond)
        if self.space == "output":
            return self.distance(out, f.parameterisation.target(f.path, x, z, t))
        return self.distance(f.parameterisation.solve(f.path, x_t, out, t).x0, x)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss at 8 fixed times on held-out pairs."""
        f = roles["net"]
        z, cond = pair_noise(batch, "RectifiedDiffusion")
        return mean_at_fixed_times(self.times, f.path, batch, lambda t: self.losses(f, batch.x, z, cond, t))
