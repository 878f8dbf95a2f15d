"""Straight: any objective of denoising, with a price on what makes an adaptive solver take small steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.path import expand
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.around import AroundObjective

__all__ = ["Straight", "eigenvalue", "embedded_gap"]

Slope = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Straight(AroundObjective):
    """`inner` + error E |gap|^2 / h^6 + stiffness E S, means: heuristics of solvers as regularisers (Pal et al. 2021).

    From data noised to a random time one step of Bogacki & Shampine's pair is taken, in the angle of the solver
    `adaptive`. gap is the difference of its two ends, which sets the sizes of that solver's steps; S = |k' - k| / |y' -
    y| of two slopes at the step's middle estimates the largest eigenvalue. This is the local form (Pal et al. 2023): no
    trajectory is solved in training. The data fix the velocity of a perfect model, so what is gained is paid for in the
    fit.

    Attributes:
        inner: an objective whose first loss trains the role "net".
        error: weight of the gap; three evaluations more and the first.
        stiffness: weight of the eigenvalue; two evaluations more and the first.
        h: the step, in the angle atan(sigma / alpha).
    """

    error: float = 1e-3
    stiffness: float = 0.0
    h: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, error="[0, inf)", stiffness="[0, inf)", h="(0, 0.5]")

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        for i, (role, loss, logs) in enumerate(self.inner(roles, batch)):
            if i or not (self.error or self.stiffness):
                yield role, loss, logs
                continue
            costs = self.costs(roles["net"], batch)
            total = self.error * costs.get("gap", 0) + self.stiffness * costs.get("eigenvalue", 0)
            yield role, loss + total, {**logs, "inner": loss, **costs}

    def costs(self, f: Denoiser, batch: Batch) -> dict[str, Tensor]:
        """Return the means of |gap|^2 / h^6 and of the eigenvalue, those that have a weight."""
        t1 = torch.tensor(f.path.t1, dtype=torch.float64)
        top = float(torch.atan2(f.path.sigma(t1), f.path.alpha(t1)))
        phi = batch.to_device(2 * self.h + batch.noise.uniform("angle").double() * (top - 2 * self.h))

        def slope(y: Tensor, phi: Tensor) -> Tensor:
            t = f.path.t_from_lambda(-torch.tan(phi).log()).clamp(max=f.path.t1)
            x = y * expand(torch.hypot(f.path.alpha(t), f.path.sigma(t)), y)
            pred = f(x, t, batch.cond)
            return expand(torch.sin(phi), y) * pred.x0 - expand(torch.cos(phi), y) * pred.eps  # towards the data

        y = expand(torch.cos(phi), batch.x) * batch.x + expand(torch.sin(phi), batch.x) * batch.normal("angle eps")
        first, found = slope(y, phi), {}
        if self.error:
            found["gap"] = (embedded_gap(slope, y, phi, self.h, first).float() / self.h**3).square().mean()
        if self.stiffness:
            found["eigenvalue"] = eigenvalue(slope, y, phi, self.h, first).mean()
        return found


def embedded_gap(slope: Slope, y: Tensor, phi: Tensor, h: float, first: Tensor) -> Tensor:
    """Return the difference of the two ends of a step of Bogacki & Shampine's pair, shaped as y [B, ...].

    Args:
        slope: dy / d(-phi) at y and phi.
        y: where the step begins.
        phi: its angle, [B]; it ends at phi - h.
        h: the step.
        first: slope(y, phi).
    """
    second = slope(y + h / 2 * first, phi - h / 2)
    third = slope(y + 3 * h / 4 * second, phi - 3 * h / 4)
    end = slope(y + h * (2 / 9 * first + 1 / 3 * second + 4 / 9 * third), phi - h)
    return h * (5 / 72 * first - second / 12 - third / 9 + end / 8)


def eigenvalue(slope: Slope, y: Tensor, phi: Tensor, h: float, first: Tensor) -> Tensor:
    """Return |k' - k| / |y' - y| of two slopes at phi - h / 2, [B]: exact for linear systems of one eigenvalue.

    Args:
        slope, y, phi, h, first: as of `embedded_gap`.
    """
    k = slope(y + h / 2 * first, phi - h / 2)
    again = slope(y + h / 2 * k, phi - h / 2)
    change, distance = ((a - b).float().flatten(1).norm(dim=1) for a, b in ((again, k), (k, first)))
    return change / (h / 2 * distance).clamp(min=1e-12)
