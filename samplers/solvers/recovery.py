"""Recovery sampling: from each noise level to the next by a guess and Langevin steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.noise import Noise, derive
from gen.diffusion.path import NoisePath, Prediction, expand

__all__ = ["Recovery"]


@dataclass(frozen=True)
class Recovery(Solver):
    """x_s from the recovery posterior p(x_s | x_t), by Langevin steps (Gao et al. 2021; CDRL, Zhu et al. 2024).

    Its logarithm is log p_s(x_s) - |x_t - r x_s|^2 / (2 v). They begin at an ancestral step; the last step, to t = 0,
    is the prediction of x0.

    r = alpha_t / alpha_s and v = sigma_t^2 - r^2 sigma_s^2 are those of x_t given x_s; -eps(x_s) / sigma_s is the slope
    of log p_s. With V = sigma_s^2 v / sigma_t^2, the variance of x_s for known data, a Langevin step moves by
    step V / 2 times the slope and adds noise of variance step V. On a Gaussian of precision L its variance settles at
    (1 / L) / (1 - step V L / 4), L V <= 1.

    Attributes:
        refine: Langevin steps in each step of the loop.
        step_size: their step, in (0, 4), as a share of V.
        initialiser: "same" begins with the denoiser that refines too; "target" with f(x, t, s=s), which the model
            cooperative answers by another network.
    """

    refine: int = 15
    step_size: float = 0.1
    initialiser: Literal["same", "target"] = "same"

    def __post_init__(self) -> None:
        check_fields(self, refine="[0, inf)", step_size="(0, 4)")

    def nfe(self, steps: int) -> int:
        return (steps - 1) * (1 + self.refine) + 1

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        if s == 0:
            return f(x, t).x0, None
        pred = f(x, t, s=s) if self.initialiser == "target" else f(x, t)
        unit = noise()
        mean, variance = self.ancestral_step(path, pred, t, s)
        guess = mean + expand(variance.sqrt(), mean) * unit
        return self.langevin(f, path, x, guess, t, s, _more_noise(unit, self.refine)), None

    def ancestral_step(self, path: NoisePath, pred: Prediction, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean, shaped as x, and variance V, of x_s given x_t and x0; t, s 0-d or [B]."""
        sigma, shrunk = path.sigma(s), torch.expm1(2 * (path.lam(t) - path.lam(s)))  # shrunk: e^(-2h) - 1
        variance = -(sigma**2) * shrunk
        left = (sigma**2 - variance).clamp(min=0).sqrt()
        mean = expand(path.alpha(s), pred.x0) * pred.x0 + expand(left, pred.x0) * pred.eps
        return mean, variance

    def langevin(
        self,
        f: DenoiseFn,
        path: NoisePath,
        x_t: Tensor,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        units: Iterable[Tensor],
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return x at s after one step for each unit noise, each followed by x = project(x), if given."""
        r = path.alpha(t) / path.alpha(s)
        v = path.sigma(t) ** 2 - (r * path.sigma(s)) ** 2
        square = self.step_size * path.sigma(s) ** 2 * v / path.sigma(t) ** 2
        pull, slack = expand(r / v, x), expand(r, x)
        sigma, half, spread = expand(path.sigma(s), x), expand(square / 2, x), expand(square.sqrt(), x)
        for unit in units:
            slope = pull * (x_t - slack * x) - f(x, s).eps / sigma
            x = x + half * slope + spread * unit
            x = x if project is None else project(x)
        return x


def _more_noise(unit: Tensor, n: int) -> list[Tensor]:
    """n more unit noises; row i of each is a function of row i of `unit`, the only draw that a step has."""
    rows = unit.detach().float().cpu().flatten(1)[:, :16].tolist()  # hundreds of random bits
    noise = Noise(tuple(derive("further", *map(str, row)) for row in rows))
    return [noise.normal(k, unit.shape[1:]).to(unit) for k in range(n)]
