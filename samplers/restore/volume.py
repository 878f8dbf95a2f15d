"""DiffusionMBIR: a volume from measurements of its slices, by a prior of slices and total variation between them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.operators.lib.solve import conjugate_gradients
from gen.samplers.grids.exponential import Exponential
from gen.samplers.restore.lib.restorer import Restorer, level

__all__ = ["Volume", "admm_sweep"]

Duals = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Volume(Restorer):
    """Predictor, corrector and one sweep of ADMM at every noise level (Chung et al. 2023, arXiv 2211.10655).

    The sweep is one of min |A x - y|^2 / 2 + weight |D x|_1, D the circular difference between neighbouring slices; its
    split and its dual variable live through all levels, without which the total variation would not act. All is done
    in units of x / alpha, so the prior may be of any path. Slices are drawn by a seed each, but are no independent
    samples: the volume ties them together.

    Attributes:
        grid: the levels of sigma / alpha; default the paper's, 378 to 0.01, at most the path's own.
        steps: number of levels; default the paper's.
        snr: of the corrector's Langevin step, per slice; 0 for none. 0.16 is the paper's.
        weight: lambda of the total variation; the paper has 0.04 for CT and 0.005 for MRI, for pixels in [0, 1].
        rho: of the split; the paper has 10 for CT and 0.01 for MRI.
        cg_steps: of conjugate gradients in a sweep; default the paper's.
        polish: ends with x + A'(y - A x) / (A'A 1), as the paper does for CT.
    """

    ties_rows: ClassVar[bool] = True

    grid: Grid = part("samplers.grids", default=Exponential(0.01, 378.0))
    steps: int = 2000
    snr: float = 0.16
    weight: float = 0.04
    rho: float = 10.0
    cg_steps: int = 1
    polish: bool = False

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)", snr="[0, inf)", weight="[0, inf)", rho="(0, inf)", cg_steps="[1, inf)")

    @torch.no_grad()
    def restore(
        self,
        denoise: DenoiserLike,
        y: Tensor,
        operator: Any,
        shape: tuple[int, ...],
        noise: Noise,
        cond: Cond | None = None,
    ) -> Tensor:
        """Return the volume [Z, C, H, W].

        Args:
            denoise: a prior of slices [C, H, W].
            y: measurements of all slices, [Z, ...].
            operator: its A takes the volume to y, and At back.
            shape: (Z, C, H, W).
            noise: one seed for each slice.
            cond: of the prior, [Z, ...].
        """
        path, times = denoise.path, self.grid.times(denoise.path, self.steps)
        x = _draw(noise, "start", y, shape) * level(path, times[0])
        duals = torch.zeros_like(x), torch.zeros_like(x)
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            gap = level(path, t) ** 2 - level(path, s) ** 2
            x = x + gap * _score(denoise, x, t, cond) + gap**0.5 * _draw(noise, f"predictor {i}", y, shape)
            if self.snr:
                x = self.correct(x, _score(denoise, x, t, cond), _draw(noise, f"corrector {i}", y, shape))
            x, duals = admm_sweep(operator, x, y, duals, self.weight, self.rho, self.cg_steps)
        if not self.polish:
            return x
        seen = operator.At(operator.A(torch.ones_like(x)))
        return x + torch.where(seen > 0, operator.At(y - operator.A(x)) / seen, 0)

    def correct(self, x: Tensor, score: Tensor, z: Tensor) -> Tensor:
        """Return slices [Z, ...] after a Langevin step, whose size follows from the norms of score and noise z."""
        norms = [part.flatten(1).norm(dim=1) for part in (z, score)]
        size = 2 * (self.snr * norms[0] / norms[1]) ** 2
        size = size.reshape(-1, *[1] * (x.ndim - 1))
        return x + size * score + (2 * size).sqrt() * z


def admm_sweep(
    operator: Any, x: Tensor, y: Tensor, duals: Duals, weight: float, rho: float, cg_steps: int = 1
) -> tuple[Tensor, Duals]:
    """Return x and the split and scaled dual variable after a sweep of ADMM for |A x - y|^2 / 2 + weight |D x|_1.

    At the fixed point rho w / weight is a subgradient of |D x|_1, and A'(A x - y) + rho D'w = 0. The linear system
    may be singular, where no slice is measured enough: conjugate gradients from x keep there what the prior drew.

    Args:
        operator: with A and At.
        x: the volume [Z, ...].
        y: its measurements.
        duals: v and w, shaped as x; zeros at first.
        weight, rho: of the total variation and of the split.
        cg_steps: steps of conjugate gradients from x for the linear system.
    """
    v, w = duals

    def normal(x: Tensor) -> Tensor:  # [1, Z, ...]: the unknown is the whole volume
        return operator.At(operator.A(x[0]))[None] + rho * _transposed(_difference(x[0]))[None]

    right = operator.At(y) + rho * _transposed(v - w)
    x = conjugate_gradients(normal, right[None], x[None], cg_steps, tolerance=0.0)[0]
    jump = _difference(x)
    v = torch.nn.functional.softshrink(jump + w, weight / rho)
    return x, (v, w + jump - v)


def _difference(x: Tensor) -> Tensor:
    """D x: the next slice less this one, the first behind the last."""
    return x.roll(-1, 0) - x


def _transposed(x: Tensor) -> Tensor:
    """D' x."""
    return x.roll(1, 0) - x


def _score(f: DenoiserLike, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
    """The score of x in units of x / alpha."""
    return f(x * float(f.path.alpha(t)), t, cond).eps / -level(f.path, t)


def _draw(noise: Noise, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return noise.normal(name, shape[1:]).to(like)
