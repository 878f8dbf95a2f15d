"""Adaptive step sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import NonFinite
from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath, expand
from gen.samplers.solvers.lib.exponential import data_prediction

__all__ = ["AdaptiveSteps"]


class Slope(NamedTuple):
    """dy/dphi [B, ...] at a point, and the rest of a pair's x0 beside the one that adds up to x."""

    k: Tensor
    extra: Tensor


@dataclass(frozen=True)
class AdaptiveSteps(Solver):
    """Bogacki & Shampine's third-order rule with its embedded second-order one, whose difference sets the step size.

    It works in the angle phi = atan(sigma / alpha), dy/dphi = cos(phi) eps - sin(phi) x0 with y = x / |(alpha, sigma)|:
    smooth and bounded at both ends of every path, and free of derivatives. The error of a step is the root mean square
    of difference / (atol + rtol max(|y|, |y'|)) over a sample. Times of the grid are met exactly; before t = 0 it stops
    at sigma / alpha = level and returns the x0 predicted there. The data decide how many evaluations that takes: nfe is
    None, and the count includes rejected steps. Order: the tolerance's, so None.

    Attributes:
        rtol, atol: relative and absolute tolerance of a step's error.
        per: "sample" gives each sample its own steps, so that none depends on its batch; the network is then evaluated
            at one time per sample until the last is done. "batch" lets the worst sample decide for all, as caches and
            intervals of guidance need.
        level: sigma / alpha at which the last interval ends.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    per: Literal["sample", "batch"] = "sample"
    level: float = 0.002

    def __post_init__(self) -> None:
        check_fields(self, rtol="[0, inf)", atol="(0, inf)", level="(0, inf)")

    def nfe(self, steps: int) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: Tensor | None, noise: DrawNoise
    ) -> tuple[Tensor, Tensor]:
        end = math.atan(self.level) if s == 0 else float(torch.atan2(path.sigma(s), path.alpha(s)))
        phi = torch.atan2(path.sigma(t), path.alpha(t))
        shape = phi.shape if self.per == "batch" else x.shape[:1]
        h = phi.new_full(shape, 0.1) if state is None else state
        if bool((phi > end).any()):
            x, h = self.solve_interval(f, path, x, phi, end, h)
            t = self.time(path, torch.full_like(h, end)) if s == 0 else s
        return (path.interpolate(f(x, t), s) if s == 0 else x), h

    def solve_interval(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, phi: Tensor, end: float, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return x at angle `end` and the step sizes, shaped as h, that the next interval begins with."""
        y = x / expand(self.radius(path, self.time(path, phi)), x)
        here = self.slope(f, path, y, phi)  # at one time for all: a prediction without information is refused here
        phi = phi.expand_as(h)
        while bool((going := phi > end).any()):
            size = torch.minimum(h, phi - end)
            last = size >= phi - end
            new_phi = torch.where(last, torch.full_like(phi, end), phi - size)
            new_y, new, error = self.try_step(f, path, y, here, phi, phi - new_phi)
            error = error.nan_to_num(math.inf)
            accepted = going & (error <= 1)
            grow = (0.9 * error.clamp(min=1e-12) ** (-1 / 3)).clamp(0.2, 5.0)
            shortened = torch.where(accepted, torch.maximum(h, size * grow), h)  # by the interval's end
            h = torch.where(going & ~(accepted & last), size * grow, shortened)
            if bool((going & (h < 1e-9)).any()):
                raise NonFinite(
                    "AdaptiveSteps: no step is small enough for the tolerance; does the network return NaN?"
                )
            rows = accepted.to(y.device).reshape(accepted.shape + (1,) * ((y.ndim - 1) * accepted.ndim))
            y = torch.where(rows, new_y, y)
            here = Slope(torch.where(rows, new.k, here.k), torch.where(rows, new.extra, here.extra))
            phi = torch.where(accepted, new_phi, phi)
        return y * expand(self.radius(path, self.time(path, phi)), y), h

    def try_step(
        self, f: DenoiseFn, path: NoisePath, y: Tensor, here: Slope, phi: Tensor, step: Tensor
    ) -> tuple[Tensor, Slope, Tensor]:
        """Return y at phi - step by Bogacki & Shampine's pair, the slope there, and the error, shaped as phi."""

        def at(part: float, *weights: tuple[float, Tensor]) -> Tensor:
            slope = torch.stack([w * k for w, k in weights]).sum(0)
            return y - expand(step, y) * slope + expand(torch.cos(phi - part * step), y) * here.extra

        k1 = here.k
        k2 = self.slope(f, path, at(1 / 2, (1 / 2, k1)), phi - step / 2).k
        k3 = self.slope(f, path, at(3 / 4, (3 / 4, k2)), phi - 3 * step / 4).k
        new = at(1, (2 / 9, k1), (1 / 3, k2), (4 / 9, k3))
        end = self.slope(f, path, new, phi - step)
        gap = expand(step, y) * (k2 / 12 - 5 * k1 / 72 + k3 / 9 - end.k / 8)
        scaled = gap / (self.atol + self.rtol * torch.maximum(y.abs(), new.abs()))
        error = scaled.double().flatten(1).pow(2).mean(1).sqrt().to(phi.device)
        return new, end, error if phi.ndim else error.max()

    def slope(self, f: DenoiseFn, path: NoisePath, y: Tensor, phi: Tensor) -> Slope:
        t = self.time(path, phi)
        x = y * expand(self.radius(path, t), y)
        pred = f(x, t)
        x0 = data_prediction(path, x, pred, t)
        return Slope(expand(torch.cos(phi), y) * pred.eps - expand(torch.sin(phi), y) * x0, pred.x0 - x0)

    def time(self, path: NoisePath, phi: Tensor) -> Tensor:
        return path.t_from_lambda(-torch.tan(phi).log()).clamp(max=path.t1)

    def radius(self, path: NoisePath, t: Tensor) -> Tensor:
        return torch.hypot(path.alpha(t), path.sigma(t))
